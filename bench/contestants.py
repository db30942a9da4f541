"""Who takes part in a comparison: systems, this project's bundles, and interpreters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.environments import find_python
from bench.workers.systems import OURS, PRECISIONS, SYSTEMS, System, bundle_system
from graphs import manifest


@dataclass(frozen=True)
class Contestants:
    """Who takes part.

    Attributes:
        systems: in the order to take turns.
        bundles: of this project, by the name of the system; those that are not there are exported.
        pythons: the interpreter of each system, by name.
    """

    systems: list[System]
    bundles: dict[str, Path]
    pythons: dict[str, str]


def choose_contestants(
    systems: Sequence[str],
    precisions: Sequence[str],
    bundles: Sequence[str] | None,
    environments: Path,
    temporary: Path,
) -> Contestants:
    """Who takes part by the command's options.

    Args:
        systems: names of systems or environments, and this project's.
        precisions: of the other systems, and of the bundles to export.
        bundles: folders; `None` to export one of each precision.
        environments: folder with those of the systems.
        temporary: folder to export into.

    Raises:
        ValueError: if a name is unknown or given twice, a bundle is not there, a system has no
            environment, or nobody is left.
    """
    if unknown := [name for name in precisions if name not in PRECISIONS]:
        raise ValueError(
            f"--precision: there is no {unknown[0]!r}; choose among {', '.join(PRECISIONS)}"
        )
    if bundles is None:
        made = [name for name in precisions if name in manifest.TARGET_PRECISIONS["cpu"]]
        ours = {bundle_system(name): temporary / f"bundle-{name}" for name in made}
    else:
        ours = name_bundles([Path(bundle) for bundle in bundles])
    chosen = choose_systems(systems, precisions, list(ours))
    if not chosen:
        raise ValueError(
            f"--systems {','.join(systems)} has none of the precision {','.join(precisions)}"
        )
    return Contestants(
        chosen,
        bundles={system.name: ours[system] for system in chosen if system in ours},
        pythons={system.name: find_python(system.environment, environments) for system in chosen},
    )


def name_bundles(paths: Sequence[Path]) -> dict[System, Path]:
    """A system for each bundle, named after its precision, and after its folder where that is taken.

    Raises:
        ValueError: if a bundle is not there or is given twice.
    """
    ours: dict[System, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"--bundle: there is no folder {path}")
        system = bundle_system(manifest.read_manifest(path).precision)
        if system in ours:
            system = replace(system, name=f"{system.name}:{path.resolve().name}")
        if system in ours:
            raise ValueError(f"--bundle gives two bundles of one precision and name: {path}")
        ours[system] = path
    return ours


def choose_systems(
    names: Sequence[str], precisions: Sequence[str], ours: Sequence[System]
) -> list[System]:
    """The systems that names stand for.

    Args:
        names: of systems or of environments, and this project's.
        precisions: of the other systems.
        ours: what this project's name stands for.

    Raises:
        ValueError: if a name is unknown or a system is named twice.
    """
    systems: list[System] = []
    for name in names:
        named = [system for system in SYSTEMS.values() if name == system.name]
        named = named or [system for system in SYSTEMS.values() if name == system.environment]
        if not named and name != OURS:
            allowed = ", ".join([OURS, *SYSTEMS])
            raise ValueError(f"--systems: there is no {name!r}; choose among {allowed}")
        named = [system for system in named if system.precision in precisions]
        systems += ours if name == OURS else named
    if len({system.name for system in systems}) != len(systems):
        raise ValueError(f"--systems names a system twice: {','.join(names)}")
    return systems
