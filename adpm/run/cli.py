"""The command line: flags -> locked config -> workdir -> mode. Every user's mistake is one sentence and exit code 2."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from adpm.errors import UserError, lookup, nearest
from adpm.provenance import leaves
from adpm.ranks import Ranks, as_one_of, joined, require_same
from adpm.run.config import Job, Mode, load_config
from adpm.run.families import PACKAGES
from adpm.run.lock import held_locks

_ROOT = Path(__file__).parents[2]

USAGE = """usage: python main.py --config=FILE.py[:VARIANT] --mode=MODE [--workdir=DIR] [--config.SECTION.FIELD=VALUE]

  --config    a config file; variants after ':', joined by '+'; --mode=describe lists every field that it has
  --mode      {modes}
  --workdir   where the run keeps its files; default runs/<config>[-<variant>]
"""


def run(argv: Sequence[str], modes: Mapping[str, Mode]) -> int:
    """Parse, assemble and run; returns the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C, 143 for SIGTERM."""
    if any(a in ("--help", "-h", "-help", "--helpfull") for a in argv[1:]):
        print(USAGE.format(modes=" | ".join(modes)))
        return 0
    these = Ranks()
    try:
        these = joined()
        with as_one_of(these), held_locks() if these.first else nullcontext():
            job, mode = parse(argv, modes)
            if these.size > 1:
                require_same(these, _about(job, mode))
            lookup(modes, mode, "--mode")(job)
            these.wait()  # who ends first may keep what the others still read
    except UserError as error:
        return _told(these, f"error: {error}")
    except BrokenPipeError:  # whoever read our lines has gone away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _told(these, f"error: {_of_system(error)}")
    except (KeyboardInterrupt, SystemExit) as stop:
        code = stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 130
        return _told(these, "\ninterrupted; run the same command again to continue where it stopped.", code)
    return 0


def _told(these: Ranks, line: str, code: int = 2) -> int:
    """The exit code, with a line that one of the ranks prints."""
    if these.tells():
        print(line, file=sys.stderr)
    return code


def _about(job: Job, mode: str) -> dict[str, Any]:
    """What all ranks have to be given alike."""
    fields = {f"config.{name}": value for name, value in leaves(job.config.to_dict()).items()}
    packages = ("adpm", *(name.split(".")[0] for name in PACKAGES))
    sources = sorted(path for name in packages for path in (_ROOT / name).rglob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    versions = {f"the version of {name}": version(name) for name in ("torch", "numpy")}
    return {"--mode": mode, "--workdir": str(job.workdir), **versions, "the code (its hash)": code, **fields}


def _of_system(error: OSError) -> str:
    """What the system said, with the path that it said it of."""
    names = " -> ".join(f"'{name}'" for name in (error.filename, error.filename2) if name is not None)
    told = error.strerror or str(error)
    return f"{names}: {told}." if names else f"the system refused: {told}."


def parse(argv: Sequence[str], modes: Mapping[str, Mode]) -> tuple[Job, str]:
    """Flags -> (job, mode).

    Raises:
        UserError: for anything that absl or ml_collections refuses, said in one sentence.
    """
    for argument in argv[1:]:
        if argument.lstrip("-").partition("=")[0] in ("flagfile", "undefok"):
            raise UserError(f"{argument.partition('=')[0]} is unknown; see --help.")
    path, _, variant = _source(argv).partition(":")
    config, house = load_config(path, variant)
    fields, overrides = _fields(config), _overrides(argv)
    for name in overrides:
        _check_field(name, fields)
    given = flags.FlagValues()
    rest_of = _without_config(argv)
    config_flags.DEFINE_config_dict("config", config, flag_values=given, sys_argv=rest_of)
    flags.DEFINE_string("mode", None, "mode", flag_values=given)
    flags.DEFINE_string("workdir", None, "workdir", flag_values=given)
    try:
        rest = given(rest_of)
    except flags.UnrecognizedFlagError as error:
        known = ("config", "mode", "workdir")
        raise UserError(f"--{error.flagname} is unknown{nearest(error.flagname, known)}; see --help.") from error
    except (flags.Error, TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(_refused(error, overrides, fields)) from error
    if len(rest) > 1:
        raise UserError(f"stray argument '{rest[1]}'; options look like --name=value (see --help).")
    if given.mode is None:
        raise UserError(f"--mode is missing; one of: {', '.join(modes)}.")
    lookup(modes, given.mode, "--mode")
    name = re.sub(r"[^\w.+-]+", "-", Path(path).stem + (f"-{variant}" if variant else ""))
    workdir = Path(given.workdir) if given.workdir else Path("runs") / name
    return Job(given.config, house, workdir), given.mode


def _without_config(argv: Sequence[str]) -> list[str]:
    """The arguments less --config itself, whose file has been read."""
    out, skip = [], False
    for argument in argv:
        name, equals, _ = argument.lstrip("-").partition("=")
        named = argument.startswith("-") and name == "config"
        if not skip and not named:
            out.append(argument)
        skip = named and not equals and not skip
    return out


def _source(argv: Sequence[str]) -> str:
    """The value of --config."""
    found = []
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            found.append(value if equals else (argv[i + 1] if i + 1 < len(argv) else ""))
    if len(found) > 1:
        raise UserError(f"--config is given {len(found)} times; give it once.")
    if found:
        return found[0]
    raise UserError("--config is missing; for example --config=configs/digits.py (see --help).")


def _fields(config: ConfigDict, prefix: str = "config.") -> dict[str, tuple[str, Any]]:
    """All fields with the names of their types and their values."""
    out: dict[str, tuple[str, Any]] = {}
    for key, value in config.items():
        here = {prefix + key: (config.get_type(key).__name__, value)}
        out |= _fields(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else here
    return out


def _overrides(argv: Sequence[str]) -> dict[str, str]:
    """The --config.section.field=value options: names with their values."""
    out: dict[str, str] = {}
    for i, argument in enumerate(argv[1:], start=1):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("--config."):
            out[name] = value if equals else next(iter(argv[i + 1 : i + 2]), "")
    return out


def _check_field(name: str, fields: Mapping[str, Any]) -> None:
    if name in fields:
        return
    if inside := [field for field in fields if field.startswith(name + ".")]:
        raise UserError(f"--{name} is a section; set one of its fields, such as --{inside[0]}.")
    raise UserError(f"--{name} is unknown{nearest(name, fields)}; --mode=describe lists all fields.")


def _refused(error: Exception, overrides: Mapping[str, str], fields: Mapping[str, Any]) -> str:
    """A refusal of the flag parser as one sentence about the field."""
    text = " ".join(" ".join(str(a) for a in error.args).split())
    for name, value in overrides.items():
        if f"--{name}=" in text or f"--{name}:" in text:
            kind, default = fields[name]
            example = f", for example {default!r}" if default is not None else ""
            return f"--{name} = '{value}' does not fit; its type is {kind}{example}."
    return f"the command line was refused: {text.rstrip('.')}."
