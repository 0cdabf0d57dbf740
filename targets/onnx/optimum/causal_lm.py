"""An ONNX graph of this target as a Hugging Face text generation model.

Source: optimum 2.3 `modeling_base.py`; transformers 5.23 `generation/utils.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import onnxruntime
import torch
from optimum.modeling_base import OptimizedModel
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from ....graph.errors import InputError, UsageError
from . import caches
from .folder import data_files, locate, own_config

_CPU = "CPUExecutionProvider"


class ORTModelForCausalLM(OptimizedModel, GenerationMixin):  # type: ignore[misc]
    """ONNX Runtime behind `generate`; `past_key_values` is a `DynamicCache` of the graph's states."""

    model_type = "lfm-convert-onnx"
    main_input_name = "input_ids"
    input_modalities = "text"
    # The graph keeps states of the last tokens only: assisted generation could not take tokens back.
    _is_stateful = True
    # A pipeline moves a model to the first GPU it sees, unless the model says that it has its place.
    hf_device_map: ClassVar[dict[str, torch.device]] = {"": torch.device("cpu")}

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        config: Any,
        *,
        path: Path,
        generation_config: GenerationConfig | None = None,
        preprocessors: list[Any] | None = None,
    ) -> None:
        super().__init__(session, config, preprocessors)
        self.path = path
        self.generation_config = generation_config or GenerationConfig.from_model_config(config)
        self._states = caches.states(session.get_inputs(), str(path))
        caches.keep_whole(config, self._states)
        self._keeps_logits = "num_logits_to_keep" in {i.name for i in session.get_inputs()}
        self._outputs = [o.name for o in session.get_outputs()]

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        config: Any = None,
        export: bool = False,
        *,
        quant: str | None = None,
        file_name: str | None = None,
        subfolder: str = "",
        provider: str | None = None,
        providers: Sequence[str] | None = None,
        provider_options: Sequence[dict[str, Any]] | None = None,
        session_options: onnxruntime.SessionOptions | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **hub: Any,
    ) -> Self:
        """Loads one variant of a folder or hub repository: that of `quant`, `file_name`, or the CPU's best there.

        `hub` takes token, cache_dir and force_download.
        Raises: InputError for what is missing or refused; NetworkError.
        """
        if export:
            raise UsageError(f"{model_id}: export=True is not for this class: lfm-convert {model_id} --target onnx")
        if unknown := sorted(set(hub) - {"token", "cache_dir", "force_download"}):
            raise UsageError(f"from_pretrained does not know {', '.join(unknown)}")
        folder, path = locate(
            model_id,
            quant=quant,
            file_name=file_name,
            subfolder=subfolder,
            revision=revision,
            local_files_only=local_files_only,
            **hub,
        )
        chosen = list(providers) if providers else [provider or _CPU]
        session = _open(path, chosen, provider_options, session_options)
        generation = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").is_file() else None
        return cls(session, config or own_config(folder), path=path, generation_config=generation)

    @property
    def device(self) -> torch.device:
        """Where inputs and outputs lie; a provider of another device gets copies."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The caches' type; logits are float32 in every variant."""
        return self._states[0].dtype

    @property
    def providers(self) -> list[str]:
        found: list[str] = self.model.get_providers()
        return found

    def to(self, device: Any) -> Self:
        """Inputs stay on the CPU; the device of the weights is chosen by `providers`."""
        if torch.device(device).type != "cpu":
            raise UsageError(f"cannot move to {device}: choose it when loading, by providers=")
        return self

    def can_generate(self) -> bool:
        return True

    @classmethod
    def is_remote_code(cls) -> bool:
        return False

    def get_experts_implementation(self) -> dict[str, str | None]:
        """`generate` asks which kernels compute experts; here the graph says so."""
        return {}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
    ) -> Any:
        """Logits [batch, kept, vocab] of new tokens [batch, new]; the cache is continued in place.

        The mask is [batch, past + new], 0 for padding; `logits_to_keep` 0 keeps all.
        """
        if past_key_values is not None:
            caches.check(past_key_values, self._states)
        elif use_cache is not False:
            past_key_values = caches.empty(self.config)
        # Arrays in, arrays out: OrtValues measured no faster on the CPU.
        feeds = self._feeds(input_ids, attention_mask, past_key_values, logits_to_keep)
        wanted = self._outputs if past_key_values is not None else self._outputs[:1]
        logits, *present = (torch.from_numpy(array) for array in self.model.run(wanted, feeds))
        if past_key_values is not None:
            caches.store(past_key_values, self._states, present, n_new=input_ids.shape[1])
        if not self._keeps_logits:
            logits = logits[:, -logits_to_keep:]
        output = CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)
        return output.to_tuple() if return_dict is False else output

    def _feeds(
        self, input_ids: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None, logits_to_keep: int
    ) -> dict[str, Any]:
        batch_size, n_new = input_ids.shape
        n_past = 0 if cache is None else cache.get_seq_length()
        if mask is None:
            mask = torch.ones((batch_size, n_past + n_new), dtype=torch.int64)
        if tuple(mask.shape) != (batch_size, n_past + n_new):
            raise UsageError(
                f"attention_mask is {list(mask.shape)}: expected [{batch_size}, {n_past + n_new}], cached tokens first"
            )
        feeds = {"input_ids": _array(input_ids), "attention_mask": _array(mask)}
        if self._keeps_logits:
            feeds["num_logits_to_keep"] = np.array(logits_to_keep, np.int64)
        return feeds | {state.name: state.read(cache, batch_size).numpy() for state in self._states}

    def _save_pretrained(self, save_directory: str | Path) -> None:
        """The graph with its weights, and the generation config; the config is written by the base class."""
        target = Path(save_directory) / "onnx"
        target.mkdir(exist_ok=True)
        for file in (self.path, *data_files(self.path)):
            shutil.copyfile(file, target / file.name)
        self.generation_config.save_pretrained(save_directory)


def _array(tensor: torch.Tensor) -> Any:
    return tensor.to("cpu", torch.int64).contiguous().numpy()


def _open(
    path: Path,
    providers: Sequence[str],
    provider_options: Sequence[dict[str, Any]] | None,
    options: onnxruntime.SessionOptions | None,
) -> onnxruntime.InferenceSession:
    """Raises: UsageError for a provider that is not installed; InputError for a graph the runtime refuses."""
    available = onnxruntime.get_available_providers()
    for provider in providers:
        if provider not in available:
            raise UsageError(f"provider '{provider}' is not in this ONNX Runtime: there is {', '.join(available)}")
    data_files(path)  # says which file is missing, where the runtime would not
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=list(providers), provider_options=provider_options
        )
    except Exception as error:  # the runtime raises its own kinds
        raise InputError(f"{path}: ONNX Runtime refuses it: {error}") from None


# Pipelines look a model's class up among those of its task.
AutoModelForCausalLM.register(AutoConfig, ORTModelForCausalLM, exist_ok=True)
