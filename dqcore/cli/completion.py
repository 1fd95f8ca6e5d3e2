"""``dqcore completion``: the script by which a shell completes verbs, options and their values."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from tyro.conf import Positional

from dqcore.cli.options import Option, options_of
from dqcore.cli.verbs import VERBS

__all__ = ["completion", "script"]


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Positional]) -> None:
    """Print what a shell needs to complete dqcore's verbs, options and their values.

    It takes seconds, so write it to a file once, and again after an update. bash: dqcore completion bash >
    ~/.local/share/bash-completion/completions/dqcore; zsh: dqcore completion zsh > _dqcore in a folder of $fpath; fish:
    dqcore completion fish > ~/.config/fish/completions/dqcore.fish. The folder must be there (mkdir -p).

    Args:
        shell: The shell.
    """
    print(script(shell))


def script(shell: str) -> str:
    """The script for ``bash``, ``zsh`` or ``fish``."""
    lines: dict[str, Callable[[], Iterator[str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    return "\n".join(lines[shell]())


def _words(option: Option) -> list[str]:
    """The words that the shell offers for an option: all but its old names."""
    old = {*option.old, *(f"--no-{name[2:]}" for name in option.old)}
    return [word for word in option.typed if word not in old]


def _groups() -> dict[str, list[str]]:
    """The verbs of two words, by their first."""
    groups: dict[str, list[str]] = {}
    for verb in VERBS:
        if " " in verb:
            groups.setdefault(verb.split()[0], []).append(verb.split()[1])
    return groups


def _first_words() -> list[str]:
    return list(dict.fromkeys(verb.split()[0] for verb in VERBS))


def _bash() -> Iterator[str]:
    """A function that asks which verb, then which option, and leaves files to bash."""
    yield "_dqcore() {"
    yield '    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]} words=""'
    yield "    COMPREPLY=()"
    yield '    if [[ $cur == "=" ]]; then cur=""; elif [[ $prev == "=" ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi'
    yield f'    if ((COMP_CWORD == 1)); then words="{" ".join(_first_words())} --help --version"; else'
    groups = _groups()
    for first, seconds in groups.items():
        yield f'    if [[ $verb == {first} ]]; then if ((COMP_CWORD == 2)); then words="{" ".join(seconds)}"; fi; '
        yield '        verb="$verb ${COMP_WORDS[2]}"; fi'
    yield '    case "$verb:$prev" in'
    for verb in VERBS:
        for option in options_of(verb):
            if option.choices and option.flags:
                cases = "|".join(f'"{verb}:{flag}"' for flag in option.flags)
                yield f'        {cases}) words="{" ".join(option.choices)}" ;;'
    yield '        *) case "$verb" in'
    for verb in VERBS:
        options = options_of(verb)
        offered = [word for option in options if not option.positional for word in _words(option)]
        given = [choice for option in options if option.positional for choice in option.choices]
        yield f'            "{verb}") if [[ $cur == -* ]]; then words="{" ".join([*offered, "--help"])}"'
        yield f'                else words="{" ".join(given)}"; fi ;;'
    yield "        esac ;;"
    yield "    esac; fi"
    yield '    [[ -n $words ]] && COMPREPLY=($(compgen -W "$words" -- "$cur"))'
    yield "    return 0"
    yield "}"
    yield "complete -o default -F _dqcore dqcore"


def _zsh() -> Iterator[str]:
    """One call of _arguments for each verb."""
    yield "#compdef dqcore"
    yield "_dqcore() {"
    yield "    local -a verbs"
    yield "    if (( CURRENT == 2 )); then"
    summaries = {verb.split()[0]: VERBS[verb].summary for verb in reversed(VERBS)}
    items = (shlex.quote(f"{first}:{summaries[first]}") for first in _first_words())
    yield f"        verbs=({' '.join(items)}); _describe verb verbs; return"
    yield "    fi"
    yield "    local verb=$words[2]; shift words; (( CURRENT-- ))"
    for first, seconds in _groups().items():
        yield f"    if [[ $verb == {first} ]]; then"
        yield f"        if (( CURRENT == 2 )); then compadd {' '.join(seconds)}; return; fi"
        yield '        verb="$verb $words[2]"; shift words; (( CURRENT-- ))'
        yield "    fi"
    yield '    case "$verb" in'
    for verb in VERBS:
        specs = [spec for option in options_of(verb) for spec in _zsh_specs(option)]
        yield f'        "{verb}") _arguments {" ".join([*map(shlex.quote, specs), "--help"])} ;;'
    yield "    esac"
    yield "}"
    yield 'if [[ $funcstack[1] == _dqcore ]]; then _dqcore "$@"; else compdef _dqcore dqcore; fi'


def _zsh_specs(option: Option) -> Iterator[str]:
    about = option.about.split(". ")[0].translate(str.maketrans("[]:", "(),"))
    action = f"({' '.join(option.choices)})" if option.choices else "_files"
    if option.positional:
        yield f"*:{option.name}:{action}" if option.many else f":{option.name}:{action}"
        return
    for word in _words(option):
        value = "" if option.switch else f":value:{action}"
        yield f"*{word}[{about}]{value}"


def _fish() -> Iterator[str]:
    """A line for each verb and option, with the condition under which it holds."""
    yield "complete -c dqcore -n __fish_use_subcommand -l help -d 'list the verbs'"
    for first in _first_words():
        about = next(VERBS[verb].summary for verb in VERBS if verb.split()[0] == first)
        yield f"complete -c dqcore -n __fish_use_subcommand -f -a {first} -d {shlex.quote(about)}"
    for first, seconds in _groups().items():
        none = f"__fish_seen_subcommand_from {first}; and not __fish_seen_subcommand_from {' '.join(seconds)}"
        for second in seconds:
            about = VERBS[f"{first} {second}"].summary
            yield f'complete -c dqcore -n "{none}" -f -a {second} -d {shlex.quote(about)}'
    for verb in VERBS:
        when = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in verb.split())
        for option in options_of(verb):
            yield from _fish_lines(option, f'complete -c dqcore -n "{when}"')


def _fish_lines(option: Option, begin: str) -> Iterator[str]:
    choices = f" -f -a {shlex.quote(' '.join(option.choices))}" if option.choices else ""
    if option.positional:
        if choices:
            yield f"{begin}{choices}"
        return
    about = shlex.quote(option.about.split(". ")[0].replace("'", "’"))
    for word in _words(option):
        name = f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}"
        yield f"{begin} {name}{'' if option.switch else ' -r'}{choices} -d {about}"
