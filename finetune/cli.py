"""Verbs and overrides: what a user types becomes a validated config, and then a command runs.

The only file that knows Hydra and OmegaConf. Heavy imports wait until a command needs them, so
that ``--help`` and a typo are answered at once.
"""

import gc
import itertools
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import rich
import yaml

from finetune.compare_words import sort_words
from finetune.config import VERBS, expand_home
from finetune.errors import ConfigError, FinetuneError, RunError, Stopped, did_you_mean
from finetune.record import check_settings
from finetune.terminal import guard, printable
from finetune.usage import CONF, group_options, groups, overview, verb_help
from finetune.validation import holds_list, holds_path, holds_text, key_types, validate

INTERRUPTED = 130
CHANGEABLE_ON_RESUME = (
    "debug",
    "dataset.workers",
    "cache_folder",
    "trainer.checkpoint_every_minutes",
    "trainer.max_time_minutes",
)
"""What leaves the course of a training as it is."""
OPTIONAL = ("experiment", "logger")
SECRET_LENGTH = 6
"""What is shorter is no secret, and would be found in many a word."""
_from_environment: dict[str, str] = {}
"""What `${oc.env:NAME}` stands for in this process's settings, by name; no message shows it."""


@dataclass(frozen=True)
class Token:
    """One word of the command line: ``key=value``, ``+key=value``, ``++key=value``, ``~key``."""

    prefix: str
    key: str
    value: str | None

    def __str__(self) -> str:
        """Give the word back as Hydra reads it."""
        return f"{self.prefix}{self.key}" + ("" if self.value is None else f"={self.value}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status.

    0; 1 where the run failed; 2 for a mistake of the user's; 128 and the number of the signal that
    stopped it, such as 130 for Ctrl-C.

    Args:
        arguments: the words after ``finetune``; None for the process's own.
    """
    # Torch's threads and the decoding workers share the cores: threads that spin while they wait
    # made a training on two busy cores five times slower. Read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    wants_traceback = "debug=true" in (word.lower() for word in words)
    try:
        _dispatch(words)
        sys.stdout.flush()
    except FinetuneError as error:
        if wants_traceback:
            sys.stderr.write(_hidden(traceback.format_exc()))
        sys.stderr.write(_hidden(f"{type(error).__name__}: {error}\n"))
        return error.exit_status
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return INTERRUPTED
    except Stopped as stopped:
        sys.stderr.write(f"Stopped by {signal.Signals(stopped.number).name}.\n")
        return stopped.exit_status
    except BrokenPipeError:  # `finetune predict … | head` has read enough
        with suppress(OSError):  # a stand-in for stdout has no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last resort: a message, never a traceback
        if wants_traceback:
            sys.stderr.write(_hidden(traceback.format_exc()))
        hint = "" if wants_traceback else "\nAdd debug=true to see where it comes from."
        sys.stderr.write(_hidden(f"Unexpected {type(error).__name__}: {error}{hint}\n"))
        return 1
    return 0


def train(*overrides: str) -> Any:
    """Fine-tune; see ``finetune train --help``. Returns the run's ``TrainResult``."""
    return run_verb("train", overrides)


def evaluate(*overrides: str) -> Any:
    """Evaluate a run on a split or a folder. Returns its ``Metrics``."""
    return run_verb("evaluate", overrides)


def compare(*words: str) -> Any:
    """Compare runs, or train and compare backbones; see ``finetune compare --help``."""
    return run_verb("compare", words)


def predict(*overrides: str) -> Any:
    """Predict every image of ``input=…``. Returns the path of the table, or None."""
    return run_verb("predict", overrides)


def export(*overrides: str) -> Any:
    """Export a run's model to a file that is checked against it. Returns its path."""
    return run_verb("export", overrides)


def inspect(*overrides: str) -> Any:
    """Look at a folder of images before anything is trained on it. Returns the ``Audit``."""
    return run_verb("inspect", overrides)


def _dispatch(words: list[str]) -> None:
    verb, *rest = words or ["--help"]
    if verb in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return
    if verb == "--version":
        from finetune import __version__

        sys.stdout.write(f"finetune {__version__}\n")
        return
    if verb not in VERBS:
        raise ConfigError(
            f"{verb}: no such verb, expected one of {', '.join(VERBS)}.{did_you_mean(verb, VERBS)}"
        )
    if {"-h", "--help"} & set(rest):
        words = [word for word in rest if word not in ("-h", "--help")]
        if verb == "compare":  # whose run folders say nothing here
            words = [word for word in words if word.startswith("config_dir=")]
        tokens, _ = _tokens(verb, words)
        sys.stdout.write(verb_help(verb, _folder(tokens, "config_dir")))
        return
    run_verb(verb, rest)


def run_verb(verb: str, words: Sequence[str]) -> Any:
    """Compose, validate and run. ``-m`` runs every combination of comma-separated values.

    Raises:
        FinetuneError: what is wrong, for the user.
    """
    if verb == "compare":
        return _compare(words)
    tokens, is_multirun = _tokens(verb, words)
    if verb == "train" and (run := _folder(tokens, "resume")) is not None:
        values, as_yaml, changes = _resumed(run, tokens)
        _validated(verb, values)
        for change in changes:
            sys.stderr.write(f"{change}; the course stays as it was.\n")
        return _run(verb, values, as_yaml)
    tokens, config_dir = _ready(verb, tokens, is_multirun=is_multirun)
    if not is_multirun:
        return _run(verb, *_compose(verb, tokens, config_dir))
    results = []
    for job in _combinations(tokens):
        sys.stdout.write(f"\n== {' '.join(str(token).removeprefix('++') for token in job)}\n")
        results.append(_run(verb, *_compose(verb, job, config_dir)))
    return results


def _compare(words: Sequence[str]) -> Any:
    """Run ``compare``, whose trainings are composed and checked before the first one starts."""
    asked = sort_words(words)
    tokens, is_multirun = _tokens("compare", asked.own)
    tokens, config_dir = _ready("compare", tokens, is_multirun=is_multirun)
    for key, listed in (("runs", asked.runs), ("backbones", asked.backbones)):
        if listed is not None:
            tokens.append(Token("++", key, f"[{','.join(map(_quoted, listed))}]"))
    more: dict[str, Any] = {}
    if asked.backbones:
        trainings = {name: asked.for_backbone(name) for name in asked.backbones}
        more["trainings"] = {name: _training(name, own) for name, own in trainings.items()}
    jobs = _combinations(tokens) if is_multirun else [tokens]
    results = [_run("compare", *_compose("compare", job, config_dir), **more) for job in jobs]
    return results if is_multirun else results[0]


def _training(backbone: str, words: Sequence[str]) -> tuple[Any, str]:
    """Compose and check the training of one backbone: its config, and that as YAML."""
    tokens, _ = _tokens("train", words)
    is_chosen = any(token.key == "model" for token in tokens)
    choice = [Token("", "model.backbone", backbone)]
    tokens, config_dir = _ready("train", [*tokens, *choice], is_multirun=False)
    if not is_chosen and backbone in group_options("model", config_dir):
        tokens.append(Token("", "model", backbone))
    values, as_yaml = _compose("train", tokens, config_dir)
    return _validated("train", values), as_yaml


def _ready(
    verb: str, tokens: Sequence[Token], *, is_multirun: bool
) -> tuple[list[Token], Path | None]:
    """Give the words as Hydra takes them, and the user's own folder of options."""
    config_dir = _folder(tokens, "config_dir")
    ours = ("config_dir", "resume") if verb == "train" else ("config_dir",)
    tokens = [token for token in tokens if token.key not in ours]
    return _prepare(verb, tokens, config_dir, is_multirun=is_multirun), config_dir


def _validated(verb: str, values: Mapping[str, Any]) -> Any:
    own = VERBS[verb].model_fields
    # A dataset option also chooses what a training needs, and `inspect` has no model.
    needless = set(VERBS["train"].model_fields) - set(own)
    return validate(VERBS[verb], {k: v for k, v in values.items() if k not in needless})


def _run(verb: str, values: dict[str, Any], as_yaml: str, **more: Any) -> Any:
    config = _validated(verb, values)
    gc.disable()  # torch and its friends leave no garbage, but looking for it takes a second
    try:
        command = import_module(f"finetune.commands.{verb}")
    finally:
        gc.enable()
    guard(rich.get_console())
    return command.run(config, as_yaml, **more)


def _tokens(verb: str, words: Sequence[str]) -> tuple[list[Token], bool]:
    tokens, is_multirun = [], False
    for word in words:
        if word in ("-m", "--multirun"):
            is_multirun = True
            continue
        match = re.fullmatch(r"(~|\+{0,2})(\w[\w./@:-]*)(?:=(.*))?", word, re.DOTALL)
        if match is None or (match[3] is None and match[1] != "~"):
            raise ConfigError(
                f"{word}: expected name=value, ~name, -m or --help; "
                f"`finetune {verb} --help` lists the names."
            )
        tokens.append(Token(match[1], match[2], match[3]))
    return tokens, is_multirun


def _folder(tokens: Sequence[Token], key: str) -> Path | None:
    """Take the folder that ``key=…`` names, as it was typed."""
    given = [token.value for token in tokens if token.key == key and token.value != "null"]
    if not given:
        return None
    typed = given[-1] or ""
    folder = expand_home(Path(typed[1:-1] if _is_quoted(typed) else typed))
    if not typed or not folder.is_dir():
        raise ConfigError(f"{key}: got `{typed}`, expected a folder that exists.")
    if key == "config_dir":
        for path in folder.rglob("*.yaml"):
            check_settings(path)
    return folder.resolve()


def _prepare(
    verb: str, tokens: Sequence[Token], config_dir: Path | None, *, is_multirun: bool
) -> list[Token]:
    """Check every key and option, and write values as Hydra's grammar wants them."""
    keys = key_types(VERBS[verb]) | ({"experiment": str} if verb == "train" else {})
    options = {group: group_options(group, config_dir) for group in groups(config_dir)}
    return [_prepare_one(token, keys, options, is_multirun=is_multirun) for token in tokens]


def _prepare_one(
    token: Token, keys: Mapping[str, Any], options: Mapping[str, list[str]], *, is_multirun: bool
) -> Token:
    if token.key.startswith("hydra") or "@" in token.key:
        return token
    is_new = token.prefix.startswith("+")
    if not is_new and token.key not in keys:
        hint = did_you_mean(token.key, [*keys, "config_dir"])
        raise ConfigError(f"{token.key}: no such key.{hint}")
    if token.prefix == "~":
        return token
    if token.key in options:
        _check_option(token, options[token.key], is_multirun=is_multirun)
        return replace(token, prefix="") if token.key in keys else token
    # `++`: whether a key exists is pydantic's to say, which says it in the user's words.
    kind = keys.get(token.key)
    return replace(token, prefix="++", value=_as_grammar(token, kind, is_sweep=is_multirun))


def _check_option(token: Token, options: Sequence[str], *, is_multirun: bool) -> None:
    given = (token.value or "").split(",") if is_multirun else [token.value or ""]
    allowed = [*options, "null"] if token.key in OPTIONAL else options
    for option in given:
        if option.strip() in allowed:
            continue
        if all(part.strip() in allowed for part in option.split(",")):
            raise ConfigError(f"{_several(token.key, option)}.")
        raise ConfigError(
            f"{token.key}: got `{option}`, expected one of {', '.join(options)}."
            f"{did_you_mean(option, options)}"
        )


def _several(key: str, value: str) -> str:
    return f"{key}: got several values, `{value}`; put -m before them to run each (make: ARGS=-m)"


def _as_grammar(token: Token, kind: Any, *, is_sweep: bool) -> str:
    """Quote a value that Hydra's grammar would misread: ``~/x``, ``a (1)``, a name ``1e5``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    value = token.value or ""
    is_path, is_text = holds_path(kind), holds_text(kind)
    try:
        override = OverridesParser.create().parse_override(f"{token.key}={value}")
    except HydraException:
        return _quoted_each(value) if is_sweep else _quoted(value)
    if override.is_sweep_override():
        if is_sweep:
            is_plain = not set("'\"()[]{}").intersection(value)
            return _quoted_each(value) if is_plain and (is_path or is_text) else value
        if is_path:
            return _quoted(value)
        if holds_list(kind):
            return f"[{value}]"
        raise ConfigError(
            f"{_several(token.key, value)}, or quote one value with a comma: "
            f"{token.key}=\"'{value}'\"."
        )
    # `1_000` is a name as good as any, and no number.
    is_misread = is_path or (is_text and not isinstance(override.value(), str))
    return value if value == "null" or _is_quoted(value) or not is_misread else _quoted(value)


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]


def _quoted_each(values: str) -> str:
    return ",".join(v if v == "null" else _quoted(v) for v in values.split(","))


def _quoted(text: str) -> str:
    body = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{body}'"


def _combinations(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    choices = []
    for token in tokens:
        values = [token.value]
        with suppress(HydraException):  # which `_compose` meets again, and reports
            override = OverridesParser.create().parse_override(str(token))
            if override.is_sweep_override():
                values = list(override.sweep_string_iterator())
        choices.append([replace(token, value=value) for value in values])
    yield from ([*job] for job in itertools.product(*choices))


def _compose(
    verb: str, tokens: Sequence[Token], config_dir: Path | None
) -> tuple[dict[str, Any], str]:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    # Hydra takes `logger: null` from a file, and from a command line `~logger` alone.
    words = [
        f"~{token.key}" if token.key in OPTIONAL and token.value == "null" else str(token)
        for token in tokens
    ]
    if config_dir is not None:
        words.append(f"hydra.searchpath=[{_quoted(f'file://{config_dir}')}]")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            values, as_yaml = _plain(compose(verb, overrides=words))
    except (
        HydraException,
        OmegaConfBaseException,
        yaml.YAMLError,
        OSError,
        ValueError,  # what Hydra raises for a file that is no mapping, or no text
    ) as error:
        message = str(error).split("\nConfig search path")[0]
        raise ConfigError(re.sub(r"\s*\n\s*", " ", message).strip()) from None
    if _are_own_images(tokens, values):
        return _compose(verb, [Token("", "dataset", "folder"), *tokens], config_dir)
    return values, as_yaml


def _are_own_images(tokens: Sequence[Token], values: Mapping[str, Any]) -> bool:
    """Tell whether images were typed, and neither the user nor an experiment chose a data set."""
    typed = {token.key for token in tokens}
    dataset = values.get("dataset")
    return (
        bool(typed & {"dataset.root", "dataset.manifest"})
        and "dataset" not in typed
        and isinstance(dataset, dict)
        and dataset.get("source") == "digits"
    )


def _plain(config: Any) -> tuple[dict[str, Any], str]:
    """Return the plain values, and the YAML in which ``${oc.env:…}`` is left as it stands."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except RecursionError:
        raise ConfigError("The configuration is nested too deeply.") from None
    except OmegaConfBaseException as error:
        reason = str(error).split("\n")[0].split("resolving interpolation: ")[-1].strip('"')
        raise ConfigError(f"{error.full_key}: {reason}.") from None
    if not isinstance(values, dict):
        raise ConfigError("The configuration is no mapping of names to values.")
    as_yaml = OmegaConf.to_yaml(config, resolve=False)
    for name in re.findall(r"oc\.env:\s*(\w+)", as_yaml):
        _from_environment[name] = os.environ.get(name, "")
    _refuse_passwords(as_yaml)
    return {str(key): value for key, value in values.items()}, as_yaml


def _refuse_passwords(as_yaml: str) -> None:
    """Refuse an address with a password in plain text: settings and commands are written down.

    Raises:
        ConfigError: there is one.
    """
    for line in as_yaml.splitlines():
        if re.search(r"://[^/\s:@]*:[^/\s@${]+@", line):
            key = line.partition(":")[0].strip(" -")
            raise ConfigError(
                f"{key}: got an address with a password, which would be written into the run; put "
                f"it into a variable of the environment: {key}='${{oc.env:NAME}}'."
            )


def _hidden(text: str) -> str:
    """Put the reference back in the place of what it stands for in the environment."""
    for name, value in _from_environment.items():
        if len(value) >= SECRET_LENGTH:
            text = text.replace(value, f"${{oc.env:{name}}}")
    return printable(text)


def _resumed(run: Path, tokens: Sequence[Token]) -> tuple[dict[str, Any], str, list[str]]:
    """Read the settings of the run that goes on, whose course cannot be changed; say what does."""
    from omegaconf import DictConfig, OmegaConf

    path = run / "config.yaml"
    if not path.is_file():
        raise RunError(f"resume: {run} is not a run directory; it has no config.yaml.")
    check_settings(path)
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, yaml.YAMLError) as error:  # a number can be too long, too
        raise RunError(f"resume: {path} cannot be read: {error}") from None
    except RecursionError:
        raise RunError(f"resume: {path} cannot be read: it is nested too deeply.") from None
    if not isinstance(config, DictConfig) or not config:
        raise RunError(f"resume: {path} holds no settings; it is damaged.")
    changes: list[str] = []
    for token in tokens:
        if token.key not in ("resume", *CHANGEABLE_ON_RESUME):
            raise ConfigError(
                f"{token.key}: cannot change when a run is resumed, which goes on as it began. "
                f"These may: {', '.join(CHANGEABLE_ON_RESUME)}."
            )
        if token.key != "resume":
            before = OmegaConf.select(config, token.key)
            OmegaConf.update(config, token.key, _from_yaml(token.value or ""), force_add=True)
            changes.append(f"{token.key}: {token.value} instead of {before}")
    OmegaConf.update(config, "resume", str(run))
    return *_plain(config), changes


def _from_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # and pydantic says what is expected
