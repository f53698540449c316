"""What is compared: a method is everything about a sampler but its number of steps and its seed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A choice from every axis of the grid but steps and seeds.

    Attributes:
        formulation: name of the model.
        rule: variance rule; None where the solver has none.
        trajectory: how the steps are chosen.
        solver: how a step is taken.
        eta: 1 = DDPM, 0 = DDIM; None where the solver leaves no choice.
    """

    formulation: str
    rule: str | None
    trajectory: str
    solver: str
    eta: float | None

    @property
    def sampler(self) -> str:
        """The rule of the reverse Gaussian, or the name of a solver that has none."""
        return self.solver if self.rule is None else self.rule

    @property
    def setting(self) -> str:
        """What else a rule is run with, for people."""
        return self.trajectory if self.eta is None else f"{self.trajectory}, eta {self.eta:g}"

    @property
    def name(self) -> str:
        """For folders and runs."""
        eta = "" if self.eta is None else f"-eta{self.eta:g}"
        return f"{self.formulation}-{self.sampler}-{self.trajectory}{eta}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.formulation}, {self.sampler}, {self.setting}"


@dataclass(frozen=True)
class Skipped:
    """Cells that cannot exist as configured: a method at these numbers of steps, and why."""

    method: Method
    why: str
    steps: tuple[int, ...]
