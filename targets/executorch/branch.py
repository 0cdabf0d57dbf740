"""What all branches of the residual stream have in common: a norm before the block, and how what it gives is added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ...graph.blocks import Branch, Rope
from .constants import Constants
from .regions import BARE, call_region, mean_square
from .window import Window

Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Call:
    """What the branches of one call share: its first position, as a tensor [1] and as a number, each rope's cosines
    and sines [S, 1, D / 2], and what is known of each window by its size.
    """

    input_pos: Tensor
    start: int
    rotations: Mapping[Rope, Rotation]
    windows: Mapping[int, Window]


class BranchModule(nn.Module):
    """A branch, x + scale * post_norm(block(norm(x))). A subclass is a kind of block; its `forward` ends with `add`."""

    gain: Tensor
    post_gain: Tensor

    def __init__(self, branch: Branch, constants: Constants, layer: int) -> None:
        super().__init__()
        if branch.norm is None:
            raise ValueError("a branch without a norm was not refused")
        self.layer, self.scale = layer, branch.scale
        self.eps, self.post_eps = branch.norm.eps, branch.post_norm.eps if branch.post_norm else None
        self.register_buffer("gain", constants.vector(branch.norm_role, layer))
        if branch.post_norm:
            self.register_buffer("post_gain", constants.vector(branch.post_norm_role, layer))

    @property
    def adds_as_it_is(self) -> bool:
        """Whether nothing is done to what the block gives before it is added."""
        return self.scale == 1 and self.post_eps is None

    def normed(self, x: Tensor) -> list[Tensor]:
        """Inputs of the region that begins the branch: from these it makes the norm of x."""
        return [x, mean_square(x, self.eps), self.gain]

    def add(self, kind: str, x: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """x plus what the last region of the block gives, of x and further inputs."""
        name = f"{kind}.{self.layer}" if self.adds_as_it_is else f"{kind}{BARE}.{self.layer}"
        (found,) = call_region(name, [x, *inputs], [x.shape[-1]])
        return found if self.adds_as_it_is else self.add_found(x, found)

    def add_found(self, x: Tensor, found: Tensor) -> Tensor:
        """x plus what the block gives, normed and scaled."""
        if self.post_eps is None:
            return x + found * self.scale
        gain = self.post_gain if self.scale == 1 else self.post_gain * self.scale
        inputs = [x, found, mean_square(found, self.post_eps), gain]
        return call_region(f"add_normed.{self.layer}", inputs, [x.shape[-1]])[0]
