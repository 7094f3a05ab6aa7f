"""What was measured, kept as JSON: one file a case, with everything needed to judge it later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .cases import CASES, Plan, Sample

__all__ = ["Result", "read", "write"]


@dataclass(frozen=True)
class Result:
    """All samples of a case: for each round, one for each peer that could be measured."""

    case: str
    made: str
    plan: Plan
    rounds: list[dict[str, Sample]]
    left_out: dict[str, str] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
    """Machine, versions and commands."""

    @property
    def peers(self) -> list[str]:
        """Those that were measured, in the order of the first round."""
        return list(dict.fromkeys(peer for samples in self.rounds for peer in samples))


def write(result: Result, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(result), indent=1)
    (folder / f"{result.case}.json").write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> list[Result]:
    """The results there are, in the order of the cases."""
    found = []
    for case in CASES:
        path = folder / f"{case.name}.json"
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            found.append(Result(**{**kept, "plan": Plan(**kept["plan"])}))
    return found
