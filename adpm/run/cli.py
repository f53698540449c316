"""The command line: flags -> locked config -> workdir -> mode. Every user's mistake is one sentence and exit code 2."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from adpm.errors import UserError, lookup, nearest
from adpm.run.tables import Tables

Mode = Callable[[ConfigDict, Path, Tables], None]

USAGE = """usage: python main.py --config=FILE.py[:VARIANT] --mode=MODE [--workdir=DIR] [--config.SECTION.FIELD=VALUE]

  --config    a config file; variants after ':', joined by '+'; every field with its default is in configs/base.py
  --mode      {modes}
  --workdir   where the run keeps its files; default runs/<config>[-<variant>]
"""


def run(argv: Sequence[str], tables: Tables, modes: Mapping[str, Mode]) -> int:
    """Parse, assemble and run; returns the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    if any(a in ("--help", "-h", "-help", "--helpfull") for a in argv[1:]):
        print(USAGE.format(modes=" | ".join(modes)))
        return 0
    try:
        config, name, mode, workdir = parse(argv, modes)
        lookup(modes, mode, "--mode")(config, workdir or Path("runs") / name, tables)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue where it stopped.", file=sys.stderr)
        return 130
    return 0


def parse(argv: Sequence[str], modes: Mapping[str, Mode]) -> tuple[ConfigDict, str, str, Path | None]:
    """Flags -> (locked config, its name, mode, workdir or None).

    Raises:
        UserError: for anything that absl or ml_collections refuses, said in one sentence.
    """
    for argument in argv[1:]:
        if argument.lstrip("-").partition("=")[0] in ("flagfile", "undefok"):
            raise UserError(f"{argument.partition('=')[0]} is unknown; see --help.")
    source = _source(argv)
    path, _, variant = source.partition(":")
    fields = _fields(load_config(path, variant))
    overrides = _overrides(argv)
    for name in overrides:
        _check_field(name, fields)
    given = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=given, sys_argv=list(argv))
    flags.DEFINE_string("mode", None, "mode", flag_values=given)
    flags.DEFINE_string("workdir", None, "workdir", flag_values=given)
    try:
        rest = given(list(argv))
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
    workdir = Path(given.workdir) if given.workdir else None
    name = re.sub(r"[^\w.+-]+", "-", Path(path).stem + (f"-{variant}" if variant else ""))
    return given.config, name, given.mode, workdir


def load_config(path: str, variant: str = "") -> ConfigDict:
    """The config in a file.

    Raises:
        UserError: if the file is missing, fails, has no get_config, or does not know the variant.
    """
    file = Path(path)
    if not file.is_file():
        folder = next(p for p in (file, file.parent, Path("configs"), Path()) if p.is_dir())
        there = [str(p) for p in sorted(folder.glob("*.py")) if p.stem not in ("__init__", "base")]
        told = f"; there: {', '.join(there)}" if there else ""
        raise UserError(f"--config = '{path}' is no file{nearest(path, there)}{told}.")
    try:
        get_config = runpy.run_path(path).get("get_config")
        config = None if get_config is None else get_config(variant) if variant else get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"--config = '{path}' cannot be run: {type(error).__name__}: {error}.") from error
    if get_config is None:
        raise UserError(f"--config = '{path}' has no function get_config.")
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config = '{path}': get_config() must return a ConfigDict, got {type(config).__name__}.")
    return config


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
    raise UserError(f"--{name} is unknown{nearest(name, fields)}; configs/base.py lists all fields.")


def _refused(error: Exception, overrides: Mapping[str, str], fields: Mapping[str, Any]) -> str:
    """A refusal of the flag parser as one sentence about the field."""
    text = " ".join(" ".join(str(a) for a in error.args).split())
    for name, value in overrides.items():
        if f"--{name}=" in text or f"--{name}:" in text:
            kind, default = fields[name]
            example = f", for example {default!r}" if default is not None else ""
            return f"--{name} = '{value}' does not fit; its type is {kind}{example}."
    return f"the command line was refused: {text.rstrip('.')}."
