"""What `--help` shows of a command: its own options and examples on one screen; `--help-all` all others, group by group."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

HELP_ALL = "--help-all"
# The group of options that belong to one target, and the option that names it.
OF_TARGET, _TARGET = "target", ("--target", "-t")
# The groups of options, by the name of a command's parameter that has them.
TITLES: Mapping[str, str] = {
    "options": OF_TARGET,
    "adapters": "Adapters",
    "budgets": "Budgets",
    "comparison": "Running and comparing",
    "lines": "Lines not to cross",
    "reports": "Reports and baselines",
}
EXAMPLES: Mapping[str, Sequence[str]] = {
    "convert": (
        "lfm-convert my-team/model --target gguf --quant Q4_K_M",
        "lfm-convert ./model --target gguf,onnx --quant Q4_0,q4f16 --out models",
        "lfm-convert bundled:moe -t mlx -q 4bit --html report.html --max-kld 0.1",
    ),
    "plan": (
        "lfm-convert plan ./model --target gguf --quant all",
        "lfm-convert plan my-team/model --target coreml --coreml-split 1GB",
        "lfm-convert plan bundled:moe -t onnx -q q4f16 --json",
    ),
    "validate": (
        "lfm-convert validate model-Q4_0.gguf --reference ./model",
        "lfm-convert validate out/ --suite standard --html all.html --junit gates.xml",
        "lfm-convert validate out/ --baseline last.json --require-baseline",
    ),
    "release": (
        "lfm-convert release --dry-run",
        "lfm-convert release lfm-convert.toml --only gguf --only '*/q4f16'",
        "lfm-convert release --out artifacts --html report.html --publish",
    ),
    "init": (
        "lfm-convert init ./model",
        "lfm-convert init my-team/model --device phone --device browser",
        "lfm-convert init bundled:dense --out tiny.toml",
    ),
    "publish": (
        "lfm-convert publish out/ --to my-team/model-GGUF --dry-run",
        "lfm-convert publish out/ --to 'my-team/{model}-{TARGET}' --pull-request",
        "lfm-convert publish out/ --to my-team/web-ONNX --only q4f16 --sign-key key.pem",
    ),
    "card": (
        "lfm-convert card out/ --to my-team/model-GGUF",
        "lfm-convert card out/ --to 'my-team/{model}-{TARGET}' --only Q4_0",
        "lfm-convert card out/ --to my-team/web-ONNX --base-model my-team/web",
    ),
    "sign": (
        "lfm-convert sign out/ --key key.pem",
        "lfm-convert sign release/model-GGUF --key key.pem",
        "lfm-convert verify out/ --key key.pub.pem",
    ),
    "verify": (
        "lfm-convert verify out/",
        "lfm-convert verify out/ --key key.pub.pem",
        "lfm-convert verify out/ --json",
    ),
    "compare": (
        "lfm-convert compare a-Q4_K_M.gguf b-Q4_K_M.gguf --reference ./model",
        "lfm-convert compare out-gguf/ out-mlx/ --suite standard",
        "lfm-convert compare old.gguf new.gguf -r ./model --json",
    ),
    "calibrate": (
        "lfm-convert calibrate ./model --out ./statistics",
        "lfm-convert calibrate ./model --text chats.jsonl -o imatrix.gguf",
        "lfm-convert ./model --target gguf --quant Q4_K_M --imatrix imatrix.gguf",
    ),
    "lora": (
        "lfm-convert lora ./model --adapter ./my-lora --out my-lora.gguf",
        "lfm-convert lora my-team/model --adapter ./my-lora -o a.gguf -q F32",
        "lfm-convert lora bundled:dense --adapter ./my-lora -o b.gguf --overwrite",
    ),
    "inspect": (
        "lfm-convert inspect ./model",
        "lfm-convert inspect model-Q4_K_M.gguf --json",
        "lfm-convert inspect out/",
    ),
}


def write_options(command: Any, context: Any, formatter: Any, words: Sequence[str]) -> None:
    """Arguments and options of a command, as far as `words`, its command line, ask for them; then its examples."""
    groups: dict[str | None, list[tuple[Any, tuple[str, str]]]] = {}
    arguments = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and parameter.param_type_name == "argument":
            arguments.append(record)
        elif record is not None:
            group = getattr(parameter, "rich_help_panel", None)  # None of an option of the command's own
            groups.setdefault(group, []).append((parameter, record))
    _section(formatter, "Arguments", arguments)
    _section(formatter, "Options", [record for _, record in groups.pop(None, [])])
    of_target, targets = groups.pop(OF_TARGET, []), _targets(words)
    for target in targets if of_target else ():
        _section(formatter, f"Options of {target}", [_own(record) for _, record in of_target if _is_of(record, target)])
    if of_target and not targets:
        formatter.write_paragraph()
        formatter.write_text(f"Each target has options of its own: '{context.command_path} --target NAME --help'.")
    if HELP_ALL in words:
        for name, found in groups.items():
            _section(formatter, str(name), [record for _, record in found])
    elif groups and targets:
        formatter.write_paragraph()
        formatter.write_text(f"{HELP_ALL} describes more: {', '.join(map(str, groups)).lower()}.")
    elif groups:
        rows = [(str(name), " ".join(max(each.opts, key=len) for each, _ in found)) for name, found in groups.items()]
        _listed(formatter, f"More options, which {HELP_ALL} describes:", rows)
    if examples := EXAMPLES.get(command.name):
        formatter.write_paragraph()
        formatter.write("Examples:\n")
        for example in examples:
            formatter.write(f"  {example}\n")


def _section(formatter: Any, name: str, records: Sequence[tuple[str, str]]) -> None:
    if records:
        with formatter.section(name):
            formatter.write_dl(records)


def _listed(formatter: Any, heading: str, rows: Sequence[tuple[str, str]]) -> None:
    formatter.write_paragraph()
    formatter.write(f"{heading}\n")
    for name, options in rows:
        text = textwrap.wrap(f"{name}: {options}", formatter.width - 2, subsequent_indent="  ", break_on_hyphens=False)
        formatter.write("".join(f"  {line}\n" for line in text))


def _targets(words: Sequence[str]) -> list[str]:
    """The targets that a command line names."""
    found: list[str] = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, separator, value = word.partition("=")
        if option in _TARGET:
            found += (value if separator else following).split(",")
    return found


def _own(record: tuple[str, str]) -> tuple[str, str]:
    """An option without the names of the targets that have it."""
    text = record[1].partition(":")[2].strip()
    return record[0], text[:1].upper() + text[1:]


def _is_of(record: tuple[str, str], target: str) -> bool:
    """Whether an option's description, `gguf, mlx: …`, names the target."""
    return target in record[1].partition(":")[0].split(", ")
