"""Prints what makes a shell complete ``zo-fl``: commands, their flags, and names after --config=.

eval "$(zo-fl completion)"  # in ~/.bashrc; zsh first needs: autoload -U bashcompinit; bashcompinit
"""

import importlib

from absl import flags

from . import cli

# Bash takes --config=quickstart for three words: "=" is one.
_SCRIPT = """\
_zo_fl() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} words
  if [[ $word == = ]]; then word= before="$before="
  elif [[ $before == = ]]; then before="${{COMP_WORDS[COMP_CWORD - 2]}}="; fi
  case "$before" in
    --config=) words="{configs}" ;;
    --sweep=) words="{sweeps}" ;;
    --*=) return ;;
    *) case "${{COMP_WORDS[1]}}" in
{cases}
      *) words="{commands} {run}" ;;
    esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [[ "${{COMPREPLY[0]}}" == --* ]] && compopt -o nospace
}}
complete -o default -F _zo_fl zo-fl"""


def define_flags() -> None:
    """Defines no flags."""


def main(argv: list[str]) -> int:
    """Prints the script and returns the exit status."""
    from zo_fl import config

    from .main import COMMANDS

    del argv
    words = {name: " ".join(flags_of(name)) for name in COMMANDS}
    cases = [f'      {name}) words="{flags_}" ;;' for name, flags_ in words.items()]
    print(
        _SCRIPT.format(
            configs=" ".join(config.names()),
            sweeps=" ".join(config.names("sweeps")),
            cases="\n".join(cases),
            commands=" ".join(COMMANDS),
            run=words["run"],
        )
    )
    return 0


def flags_of(name: str) -> list[str]:
    """Returns a command's own flags, those that take a value with a ``=``."""
    command = importlib.import_module(f".{'main' if name == 'run' else name}", __package__)
    before = set(flags.FLAGS)
    command.define_flags()
    own = sorted(set(flags.FLAGS) - before)
    found = [f"--{flag}" + ("" if flags.FLAGS[flag].boolean else "=") for flag in own]
    flags.FLAGS.remove_flag_values(own)  # another command may have one of the same name
    return found


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
