#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# /// script
# requires-python = ">=3.9"
# dependencies = ["plumbum>=1.8", "PyYAML>=6"]
# ///
"""TazPod: one project directory, one disposable container, one sealed vault.

The whole tool is this file.  It reads from top to bottom, and a section calls only upward:

    0  constants          every path, name and number that others rely on
    1  errors             what can go wrong, each with its exit status and a next step
    2  output, questions  the only prints; talk goes to stderr, data to stdout
    3  running programs   the only section that knows plumbum
    4  config             the only reader of YAML; how files are written and locked
    5  container          docker's argv, and what the container is
    6  vault              seal, unseal, the tmpfs, lock (in the container only)
    7  storage            the vault's copies in S3, by the aws CLI (in the container only)
    8  session            what state things are in, what to do next, the shell
    9  guard              ends the sessions whose host side died, and locks after the last
    10 commands           one function a word
    11 command line       the parser, and the only place where an error becomes a status

It runs on two sides: on the host (container, shell) and, put into the container by the host,
as the pod (vault).  A vault word typed on the host is forwarded to the pod.

Exit status: 0 done; 1 failed; 2 wrong usage or config; 127 a program is missing;
130 interrupted; `pull` gives 3 when the storage holds no vault, `status` and `doctor` 4 when
not all is well, `enter` and `run` the shell's or the command's own.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):  # noqa: UP036
    raise SystemExit("tazpod: error: this needs Python 3.9 or later, and this is " + sys.version.split()[0])

import contextlib
import errno
import fcntl
import io
import math
import os
import re
import signal
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, NoReturn


class Late:
    """A module, or a name in one, that is imported when it is first used: --help needs none of them."""

    def __init__(self, module: str, name: str = "") -> None:
        self._place = module, name

    def _load(self) -> Any:
        import importlib

        module, name = self._place
        found: Any = importlib.import_module(module)
        if not name:
            return found
        return getattr(found, name)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._load(), attribute)

    def __call__(self, *words: Any) -> Any:
        return self._load()(*words)


if TYPE_CHECKING:
    import argparse
    import json
    import pwd
    import shlex
    from pathlib import Path
else:
    json, shlex, Path = Late("json"), Late("shlex"), Late("pathlib", "Path")

__version__ = "0.6.2"

# ── 0. constants ──────────────────────────────────────────────────────────────────────────

# The exit statuses, as the text above explains them.
OK = 0
FAILED = 1
USAGE = 2
ABSENT = 3
UNWELL = 4
DECLINED = 5  # from pod to host: the person who leaves wants no save in the new format
MISSING = 127
INTERRUPTED = 130

ENVELOPE = ".tazpod"
DEFAULT_IMAGE = "tazzo/tazpod-ai:latest"
DEFAULT_USER = "tazpod"
DEFAULT_PREFIX = "tazpod/vault"  # of what the storage holds
DEFAULT_SHELL = "/bin/bash"
CONFIG_PATH = ".tazpod/config.yaml"
DOCKERFILE_PATH = ".tazpod/Dockerfile.ai"
SEALED_NAME = "vault.tar.aes"
GO_NAME = "vault.tar.aes.go"  # the file that Go TazPod wrote, kept when the first save replaces it
WORKSPACE = "/workspace"
POD_RUN = "/workspace/.tazpod/run"  # where host and pod see each other's sessions
POD_TOOL = "/opt/tazpod"
POD_MADE = "/opt/tazpod/made.json"  # what the container was made with
POD_CONFIG = "/opt/tazpod/config.json"  # what its person has approved for it
POD_LAUNCHER = "/usr/local/bin/tazpod"
# Imported, not run as a script: then Python keeps what it has compiled.
POD_START = f'import sys; sys.path.insert(0, "{POD_TOOL}"); import tazpod; tazpod.program()'
POD_AWS_CONFIG = "/workspace/.tazpod/.aws/config"
EXIT_LIMIT = 20.0  # seconds that the last push of a session may take
DETACH_KEYS = "ctrl-^,ctrl-@,ctrl-^"  # three keys that nobody types in a row
ASK_LIMIT = 8.0  # seconds that `status` waits for the storage
LOG_PATH = "/tmp/tazpod-sync.log"
GUARD_NOTES = "/dev/shm/tazpod-guard.json"  # in RAM: how the guard fares
POD_PROGRAMS = ("sudo", "gpg", "openssl", "tar", "mount", "umount", "mountpoint")

RAM = "tazpod"  # what a mount table calls the memory of an open vault: see `ram_name`
LOGIN_RAM = "tazpod-login"  # and that of a login before there is one
# A vault that was destroyed is made as small as a page, for fewer than a thousand files (tmpfs(5)): every
# namespace that still shows it tells so.  The kernel does that to none that holds more, and an open vault has
# two pages in use and room for more files; but root in the container may empty one, and put the mark on.
DESTROYED = "[^ ]*,size=(4|16|64)k,nr_inodes=[1-9][0-9]{0,2}(,.*)?"
TRANSIT = ".secrets.transit"  # in the home: where a vault is while it is opened or locked
PASSPHRASE_FILE = ".vault_pass"  # of the open session, in RAM only
NEXT_FILE = ".vault_pass.next"  # the one that `passwd` is about to bring into force
STATE_FILE = ".vault_state"  # what was sealed last, in RAM only
# Patterns stand here as text: re compiles, and keeps, those that a word needs, and no start waits for all.
RESERVED = rb"\.vault_((pass|state)(\.next|)(\.[0-9a-f]{8}\.tmp|)|history)"

# The words with which the tool calls itself in the container, and one for the shells that complete.
SETUP_WORD = "__internal_setup"
HOLDERS_WORD = "__internal_holders"
GUARD_WORD = "__internal_sync_daemon"
STATUS_WORD = "__internal_status"
DOCTOR_WORD = "__internal_doctor"
COMPLETE_WORD = "__complete"

ETHERNET_MTU = 1500  # bytes; what Docker's bridge takes for granted

SLOW = 2.0  # seconds after which a person is told what is waited for
TIME_LIMIT = 120.0  # seconds a helper program may take before it counts as hung
WAIT_LIMIT = 60.0  # seconds to wait for another tazpod that works on the same vault
ATTEMPTS = 3  # at the passphrase, and of the AWS CLI at one call
SPARSE_LIMIT = 32  # how many times its room an open vault may seem to hold, holes counted
SHORT_PASSPHRASE = 12  # characters below which a new passphrase is warned about
PASSPHRASE_LIMIT = 4096  # bytes: a pipe takes so many without a reader
SHARED_LIMIT = 1 << 20  # bytes of a config or record

GITIGNORE = """\
# Only what describes the environment belongs in git: nothing secret, nothing of one machine.
*
!.gitignore
!config.yaml
!Dockerfile.ai
"""

CONFIG_TEMPLATE = """\
# TazPod: the runtime contract of this project. Every key is optional, and there are more of them:
# ports, mounts, env, shell, docker.args, hooks, identity, network.mtu, features.ssh_agent, vault.binds
# and others. `tazpod config` prints all with their values.
image: {image}
container_name: {name}
user: tazpod                            # the operator's account in the container

build:
  dockerfile: .tazpod/Dockerfile.ai     # how the image is built when it is not pulled
  context: .

features:
  ghost_mode: true                      # secrets live in RAM; false: a plain container, no vault
  debug: false                          # print every command that is run

vault:
  size: 64m                             # most that an open vault may hold
  keep: 5                               # earlier sealed versions kept beside it

# aws_sso:                              # the storage; naming it makes a fresh host offer to pull
#   bucket: tazlab-storage
#   prefix: {prefix}
#   region: eu-central-1
#   profile: tazlab-bootstrap
#   start_url:                          # with the next two, a login asks nothing more
#   account_id:
#   role_name:
#   endpoint_url:                       # of a service that is not AWS
"""

DOCKERFILE = r"""# The image of TazPod's container, in three stages, each one on the one before:
#   base  the shell, git, editors, search, and all that the vault needs
#   aws   base and the AWS CLI, version 2: all of TazPod works from here on
#   ai    aws and Node.js with the coding agents: what a plain build gives
# A smaller image: docker build --target aws -f Dockerfile.ai .
# Nothing is copied from the build context, and no BuildKit is needed.

FROM debian:trixie-slim AS base

# The vault needs python3, gpg, openssl, tar, sudo, mount; the rest is for people.
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      bash bash-completion ca-certificates curl fd-find fzf git gpg gpg-agent \
      jq less mount nano openssh-client openssl pinentry-curses procps python3 \
      ripgrep sudo tar tmux tree unzip util-linux vim-tiny \
 && ln -s /usr/bin/fdfind /usr/local/bin/fd \
 && ln -s /usr/bin/vim.tiny /usr/local/bin/vim \
 && apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log

# uid 1000 is the first person's on most hosts, so /workspace stays theirs.
# The folders are mounted over; Docker would make missing ones as root.
RUN groupadd -g 1000 tazpod \
 && useradd -m -u 1000 -g 1000 -s /bin/bash tazpod \
 && echo 'tazpod ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/tazpod \
 && chmod 0440 /etc/sudoers.d/tazpod \
 && install -d -o tazpod -g tazpod -m 0755 /workspace \
 && install -d -o tazpod -g tazpod -m 0700 \
      /home/tazpod/.ssh /home/tazpod/.aws /home/tazpod/secrets \
 && printf '%s\n' \
      'case $- in *i*) ;; *) return ;; esac' \
      'PS1="\[\e[1;36m\]tazpod\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]\\$ "' \
      'HISTCONTROL=ignoreboth HISTSIZE=10000 HISTFILESIZE=20000' \
      'shopt -s checkwinsize histappend' \
      'alias ls="ls --color=auto" ll="ls -alFh" grep="grep --color=auto"' \
      '. /usr/share/bash-completion/bash_completion' \
      'eval "$(fzf --bash)"' \
      > /home/tazpod/.bashrc

ENV LANG=C.UTF-8 EDITOR=vim
USER tazpod
WORKDIR /workspace
CMD ["bash"]

FROM base AS aws

# Debian's awscli is version 2, with the conditional writes the storage needs.
USER root
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      awscli \
 && apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log
USER tazpod

FROM aws AS ai

# The agents cannot write to /usr/local, so they must not try to update
# themselves. npm also fetches native programs for other kinds of machine, half
# a gigabyte of them: out. Then each agent is run, so that one without its
# native part fails the build, here.
ENV DISABLE_AUTOUPDATER=1
USER root
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      nodejs npm \
 && npm install -g --no-audit --no-fund \
      @anthropic-ai/claude-code @google/gemini-cli @openai/codex opencode-ai \
 && cd /usr/local/lib/node_modules \
 && rm -rf @anthropic-ai/claude-code/node_modules/@anthropic-ai/*-musl \
      opencode-ai/node_modules/opencode-linux-*-* \
 && mkdir /root/try && export HOME=/root/try \
 && claude --version && gemini --version && codex --version && opencode --version \
 && apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log \
      /root/try /root/.npm /root/.cache /tmp/*
USER tazpod
"""

# ~/.ssh is read-only in the container: what ssh learns goes into the project.
KNOWN_HOSTS = ".tazpod/known_hosts"
SSH_CONFIG = f"""\
Host *
    UserKnownHostsFile {WORKSPACE}/{KNOWN_HOSTS} ~/.ssh/known_hosts ~/.ssh/known_hosts2
"""

POD_AGENT = "/workspace/.tazpod/run/agent.sock"  # leads to the ssh agent of the newest session's host
# What a host side may tell its shell, in its lease: nothing secret, and only such characters.
SESSION_VARIABLES = ("TERM", "COLORTERM", "LANG", "SSH_AUTH_SOCK")
SESSION_VALUE = r"[A-Za-z0-9/][A-Za-z0-9_.,:@/+-]*"


class SessionKind(NamedTuple):
    """What follows from the state that a session is in."""

    uses_vault: bool  # while its host side lives, nobody else's leaving locks the vault
    lock_follows: bool  # when its host side dies, the vault is to be saved and locked


# A session is one `enter` or `run`.  Its files lie in .tazpod/run under one number.  This one tells how
# far it is, and is locked (flock) by the host side for as long as that lives:
LEASE = "lease"
SHELL_DUE = "session"
VISIT = "visit"
LEAVING = "leaving"
SESSION_KINDS = {
    # from the first moment on, made by the host side
    LEASE: SessionKind(uses_vault=True, lock_follows=True),
    # from when the shell is started, which may then claim it; renamed by the host side
    SHELL_DUE: SessionKind(uses_vault=True, lock_follows=True),
    # a `run` in a vault that `unlock` alone has opened, renamed by the host side
    VISIT: SessionKind(uses_vault=False, lock_follows=False),
    # while it saves and locks, renamed by the `lock` in the pod, or by the host side of a `run`
    LEAVING: SessionKind(uses_vault=False, lock_follows=True),
}
# The others: who claimed it, as a line of /proc/<pid>/stat, written by the shell or the command of a
# `run`; and the socket to the ssh agent of its host, made by the host side.
CLAIM_KIND = "shell"
AGENT_KIND = "agent"
WATCH_PAUSE = 1.0  # seconds between two looks of a host side at the guard and at its own lease
CLAIM_LIMIT = 30.0  # seconds in which a slow engine may start the shell
UP_LOCK = "up.lock"  # in .tazpod/run; held while the container is made to run
GUARD = "guard"  # who leaves when the guard locks
GUARD_LOCK = "guard.lock"  # in .tazpod/run; held by the guard for as long as that lives

# Where the coding agents keep their logins and their state, in the home; and the variable without which
# one of them writes a file beside its folder.
AGENTS = (
    *(".pi", ".omp", ".gemini", ".claude", ".codex", ".opencode"),
    *(".local/share/opencode", ".config/opencode", ".local/state/opencode"),
)
AGENT_VARIABLES = 'export CLAUDE_CONFIG_DIR="${CLAUDE_CONFIG_DIR-$HOME/.claude}"\n'

# For every bash in the container, behind what `shell_settings` gives.  The shell that `enter` opens
# ties itself to the host side that opened it (see section 9); for one that is not bash, a bash with
# TAZPOD_CLAIM does so.
BASH_HOOK = (
    r"""# TazPod
__tazpod_take() {  # what a host side says of its terminal, as far as this container knows it
  local name value
  while IFS='=' read -r name value; do
    [[ $value =~ ^[A-Za-z0-9/][A-Za-z0-9_.,:@/+-]*$ ]] || continue
    case $name in
      TERM) for value in "$value" xterm-256color; do
              infocmp "$value" &> /dev/null && export TERM="$value" && break
            done ;;
      LANG) [ -n "$( (LC_ALL=$value) 2>&1 )" ] || export LANG="$value" ;;
      COLORTERM | SSH_AUTH_SOCK) export "$name=$value" ;;
    esac
  done < "$1"
}
__tazpod_read() {  # NAME FILE: a file of the vault as a variable, less the newlines at its end
  [[ -f $__tazpod_secrets/$2 && -r $__tazpod_secrets/$2 ]] && export "$1=$(< "$__tazpod_secrets/$2")"
}
__tazpod_vault() {  # whether the vault is open; when that changes, what it gives to a shell
  local table pair was=${__tazpod_state-}
  read -rd '' table < /proc/self/mountinfo || :
  __tazpod_state=locked
  [[ $table != *" $__tazpod_secrets "* ]] || __tazpod_state=open
  [[ $__tazpod_state != "$was" ]] || return 0
  # By a folder that only an open vault has: it may be locked just now.
  [[ $__tazpod_state = locked || ! -O $__tazpod_secrets || -d $__tazpod_history ]] ||
    mkdir -m 700 "$__tazpod_secrets/.aws/../${__tazpod_history##*/}" 2> /dev/null
  for pair in "${__tazpod_files[@]}"; do
    if [[ $__tazpod_state = open ]]; then __tazpod_read "${pair%%=*}" "${pair#*=}"
    elif [[ $was = open ]]; then unset "${pair%%=*}"; fi
  done
  [[ $- != *i* || $was != locked ]] || history -n 2> /dev/null
}
__tazpod_with() {  # what `run` was asked for: NAME=FILE, and FILE with a line NAME=VALUE for each
  local item line
  for item in "$@"; do
    if [[ $__tazpod_state != open ]]; then
      echo "tazpod: error: the vault is locked, so ${item#*=} cannot be read" >&2; return 1
    elif [[ $item = [!=]* ]]; then
      __tazpod_read "${item%%=*}" "${item#*=}" && continue
    elif [[ -f $__tazpod_secrets/${item#=} && -r $__tazpod_secrets/${item#=} ]]; then
      while IFS= read -r line || [[ -n $line ]]; do
        [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || [[ $line =~ ^[[:space:]]*(#|$) ]] || break
        [[ $line != [A-Za-z_]* ]] || export "$line"
        line=
      done < "$__tazpod_secrets/${item#=}"
      [[ -n $line ]] || continue
    fi
    echo "tazpod: error: ${item#*=}: is no such file of the vault, or has a line that is not NAME=VALUE" >&2
    return 1
  done
}
if [[ -n $__tazpod_secrets ]]; then
  # What is typed is kept in a folder that only an open vault has, so nowhere while it is locked.  Root's
  # would be files that the vault's owner cannot read.
  [[ -O $__tazpod_secrets ]] || __tazpod_history=/nonexistent
  export HISTFILE=$__tazpod_history/shell LESSHISTFILE=$__tazpod_history/less
  export PYTHON_HISTORY=$__tazpod_history/python NODE_REPL_HISTORY=$__tazpod_history/node
  export PSQL_HISTORY=$__tazpod_history/psql SQLITE_HISTORY=$__tazpod_history/sqlite
  export MYSQL_HISTFILE=$__tazpod_history/mysql fish_history=
  __tazpod_vault
fi
"""
    rf"""if [[ $PPID = 0 && ( $- = *i* || -n ${{TAZPOD_CLAIM-}} ) ]]; then
  __tazpod_due=()
  for __tazpod_lease in /workspace/.tazpod/run/*.{SHELL_DUE}; do
    [[ -f $__tazpod_lease && ! -e ${{__tazpod_lease%.{SHELL_DUE}}}.{CLAIM_KIND} ]] || continue
    __tazpod_due+=("$__tazpod_lease")
  done
  for __tazpod_lease in "${{__tazpod_due[@]}}"; do
    # Of several, those are left out whose lock can be got: their host side is dead.
    (( ${{#__tazpod_due[@]}} == 1 )) || ! flock -ns "$__tazpod_lease" true 2> /dev/null || continue
    ( umask 077; set -o noclobber; read -r self < "/proc/$$/stat"
      echo "$self" > "${{__tazpod_lease%.{SHELL_DUE}}}.{CLAIM_KIND}" ) 2> /dev/null || continue
    __tazpod_take "$__tazpod_lease"
    __tazpod_lease=${{__tazpod_lease##*/}}
    export TAZPOD_SESSION="${{__tazpod_lease%.{SHELL_DUE}}}"
    break
  done
"""
    r"""  unset __tazpod_lease __tazpod_due
fi
[[ $- = *i* ]] || return 0
tazpod() {  # with `env`: take over what has changed
  local lines
  [[ $* = env && -t 1 ]] || { command tazpod "$@"; return; }
  lines=$(command tazpod env) && eval "$lines"
}
__tazpod_prompt() {
  __tazpod_vault
  __tazpod_mark='[locked] ' __tazpod_on= __tazpod_off=
  if [[ $__tazpod_state = open ]]; then
    __tazpod_mark='[open] '
    [[ -n ${NO_COLOR-} || $TERM = dumb ]] || __tazpod_on=$'\e[1;33m' __tazpod_off=$'\e[0m'
  fi
  [[ -z $PS1 || $PS1 = *__tazpod_mark* ]] || ! shopt -q promptvars ||
    PS1='\[${__tazpod_on}\]${__tazpod_mark}\[${__tazpod_off}\]'$PS1
}
# One element of an array (bash 5.1): what ~/.bashrc puts into the variable later is another.
[ -z "$__tazpod_secrets" ] || PROMPT_COMMAND[99]=__tazpod_prompt
"""
)

# What `run` starts: it ties itself to the session of its host side as the shell does, and goes on as
# the command under the same process number.
CLAIM = (
    'read -r self < "/proc/$$/stat"; (umask 077; echo "$self" > "$0") 2> /dev/null; '
    f". {POD_TOOL}/bashrc; "
    f'for lease in "${{0%{CLAIM_KIND}}}"{{{LEASE},{VISIT}}}; do '
    '[ ! -f "$lease" ] || __tazpod_take "$lease"; done; line=$1; shift; '
    '__tazpod_with "$@" || exit; exec bash -lc "$line"'
)

# ── 1. errors ─────────────────────────────────────────────────────────────────────────────


class TazpodError(Exception):
    """A failure in one line: what, about which file; `hint` says what to do next."""

    exit_code = FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(TazpodError):
    """The command line or the config is wrong."""

    exit_code = USAGE


class MissingProgram(TazpodError):
    """A program or library that this needs is not installed."""

    exit_code = MISSING


class Busy(TazpodError):
    """Another tazpod holds a lock for longer than this one was to wait."""


class VaultError(TazpodError):
    """The vault could not be read, written, mounted or unmounted."""


class NothingOpen(VaultError):
    """There is no open vault to work on."""


class Declined(VaultError):
    """A person was asked, and said no."""


class WrongPassphrase(VaultError):
    """The integrity check failed: the passphrase is wrong or the file is damaged."""


# ── 2. output and questions ───────────────────────────────────────────────────────────────
#
# The rules of all that this tool says:
#
# - Talk goes to standard error, data to standard output.  Nothing outside of this section prints.
# - What others wrote is shown and not obeyed.  `plain` writes out whatever a terminal would act on, so
#   no name, no setting and no message of another program begins a line of its own.
# - An error is one line, which says what failed and on what.  After it comes a hint: what to do next.
# - A command that is shown can be pasted: `quoted`.
# - Only a person at a terminal is asked.  Elsewhere the answer to a question is no.
# - A passphrase, a key or a token is never printed, not with --debug either.


class Options:
    """What the command line says of every word alike, and what `dispatch` makes of it."""

    debug = False
    yes = False
    dry_run = False
    hurry = False  # not the moment to load plumbum: see `spawn`
    folder: Path | None = None  # what --pod says instead of the current folder
    pod = ""  # and the name of that container

    def __init__(self) -> None:
        # What a dry run has shown counts as done for what comes after it: containers by name.
        self.containers: dict[str, Any] = {}
        self.mounts: list[Sequence[str]] = []  # the calls of mount and umount
        self.half_line = False  # whether the terminal shows what is waited for: see `waiting`


OPTIONS = Options()


def _paint(text: str, code: str) -> str:
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        return f"\033[{code}m{text}\033[0m"
    return text


def plain(text: str) -> str:
    """The text as one line that a terminal shows and does not obey.

    Line ends, control characters, marks that turn or hide what stands around them, and bytes that are
    no text are all written as Python's repr writes them.
    """
    if text.isprintable():
        return text
    shown = ""
    for character in text:
        if not character.isprintable():
            character = repr(character)[1:-1]  # noqa: PLW2901
        shown += character
    return shown


TOLD_LIMIT = 300  # characters of one text of others
# What a terminal shows as a space, or as nothing, although it can be printed.
BLANK = "[ \U0001d159\U000e0100-\U000e01ef\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe00-\ufe0f\uffa0]"


def brief(text: str) -> str:
    """Words of others as they stand within a line of ours: with single spaces, and never long.

    A terminal breaks a long line, and what follows many spaces would stand in a row of its own.
    """
    return re.sub(f"{BLANK}+", " ", text)[:TOLD_LIMIT]


def with_spaces(text: str) -> str:
    """A value of others as a whole, in which no run of spaces fills a row: each second one is written out."""
    return text.replace("  ", " \\u0020")


def quoted(*words: str) -> str:
    """Words as a shell takes them.

    What cannot be printed, and spaces where many stand together, are written out in $'...', which bash and
    zsh read.  So whoever pastes the text has read all that the shell is given.
    """
    shown = []
    for word in words:
        blank = re.sub(f"{BLANK}+", " ", word) != word
        if word.isprintable() and not blank:
            shown.append(shlex.quote(word))
            continue
        text = ""
        for character in word:
            if character in "\\'":
                text += f"\\{character}"
            elif character.isprintable() and not (blank and re.match(BLANK, character)):
                text += character
            else:
                data = character.encode("utf-8", "surrogatepass")
                if "\udc80" <= character <= "\udcff":
                    data = bytes([ord(character) & 255])  # a byte of a name that is no text
                text += "".join(f"\\x{byte:02x}" for byte in data)
        shown.append(f"$'{text}'")
    return " ".join(shown)


def _talk(text: str, mark: str = "", colour: str = "") -> None:
    """Print one line on standard error, with a coloured mark in front of it where there is one."""
    end_half_line()
    line = plain(text)
    if mark:
        line = f"{_paint(mark, colour)} {line}"
    # A terminal that was closed must not stop the saving and locking that follows, nor make a
    # status of its own when Python flushes at the end.
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")


def say(text: str) -> None:
    """One line of progress for the person, on stderr."""
    _talk(text, "tazpod:", "1;36")


def progress(text: str) -> None:
    """One line about a change that is made or was made: a dry run makes none, and says nothing of it."""
    if not OPTIONS.dry_run:
        say(text)


def would(what: str) -> bool:
    """Whether this is a dry run, which then says what would be done to a file."""
    if OPTIONS.dry_run:
        say(f"would {what}")
    return OPTIONS.dry_run


def warn(text: str) -> None:
    """One line about something that is not as it should be."""
    _talk(text, "tazpod: warning:", "1;33")


def complain(error: TazpodError) -> None:
    """Print an error and, on a line of its own, what to do next."""
    _talk(str(error), "tazpod: error:", "1;31")
    if error.hint:
        _talk(error.hint, "hint:", "1")


def relay(text: str) -> None:
    """Pass on what a program said on its standard error, line by line, with no mark of ours."""
    for line in io.StringIO(text):
        _talk(line.rstrip())


def debug(text: str) -> None:
    """A line shown only with --debug or features.debug."""
    if OPTIONS.debug:
        _talk(text, "+", "2")


def emit(*lines: str) -> None:
    """Print data on standard output: each argument is one line, whatever is in it."""
    print("\n".join(map(plain, lines)), flush=True)


def emit_json(value: object) -> None:
    """Print data for programs on standard output.  JSON itself escapes all that a terminal would obey."""
    emit(*json.dumps(value, indent=2).splitlines())


def bytes_text(count: int) -> str:
    """A number of bytes for people."""
    if count < 1024:
        return f"{count} bytes"
    size = count / 1024
    for unit in ("KiB", "MiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


@contextlib.contextmanager
def waiting(what: Callable[[], str]) -> Iterator[None]:
    """Tell a person at a terminal meanwhile what takes so long, in a line that is written over and over."""
    if not on_terminal():
        yield
        return
    import threading

    start = time.monotonic()
    over = threading.Event()

    def tell() -> None:
        pause = SLOW
        while not over.wait(pause):
            OPTIONS.half_line = True
            mark = _paint("tazpod:", "1;36")
            line = f"\r{mark} {plain(what())}, {time.monotonic() - start:.0f} s\033[K"
            with contextlib.suppress(OSError, ValueError):
                print(line, end="", file=sys.stderr, flush=True)
            pause = 1.0

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        end_half_line()


def end_half_line() -> None:
    """Take that line away, before another is written."""
    if OPTIONS.half_line:
        OPTIONS.half_line = False
        with contextlib.suppress(OSError, ValueError):
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def on_terminal() -> bool:
    """Whether there is a person to ask: standard input and standard error are a terminal."""
    return all(os.isatty(fd) for fd in (0, 2))


def all_terminal(stdout: int | None = None) -> bool:
    """Whether that person sees the output too, so that a program may be given the whole terminal."""
    if stdout is None:
        stdout = 1
    return on_terminal() and os.isatty(stdout)


def confirm(question: str, *, in_person: bool = False) -> bool:
    """Ask `[y/N]` on a terminal; elsewhere the answer is no, and --yes says yes.

    With `in_person` neither --yes nor what was typed before the question is an answer.
    A dry run asks nothing: where there would be a question, it shows what yes would do.
    """
    if OPTIONS.yes and not in_person:
        return True
    if not on_terminal():
        return False
    if OPTIONS.dry_run:
        say(f"{question} Here the answer is yes.")
        return True
    if in_person:
        import termios

        termios.tcflush(0, termios.TCIFLUSH)
    mark = _paint("tazpod:", "1;36")
    print(f"{mark} {plain(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    # Not sys.stdin, whose buffer would swallow what is typed ahead for the shell.
    return os.read(0, 1024).strip().lower() in (b"y", b"yes")


def check_passphrase(passphrase: bytes) -> bytes:
    """Give the passphrase back if it can be used.  gpg would cut it at a newline or NUL without a word."""
    if not passphrase:
        raise UsageError("the passphrase is empty")
    if b"\n" in passphrase or b"\0" in passphrase:
        raise UsageError("the passphrase has a newline or NUL in it", "use one line of text")
    if len(passphrase) > PASSPHRASE_LIMIT:
        raise UsageError(f"the passphrase is longer than {PASSPHRASE_LIMIT} bytes")
    return passphrase


def read_passphrase(fd: int) -> bytes:
    """A passphrase from a descriptor: all that can be read there, less one newline at the end."""
    most = PASSPHRASE_LIMIT + 2  # with that newline, and one byte more to see that it is too long
    data = b""
    try:
        while len(data) < most:
            piece = os.read(fd, most - len(data))
            if not piece:
                break
            data += piece
    except OverflowError:
        raise UsageError(f"--passphrase-fd {fd}: there is no such descriptor") from None
    except OSError as error:
        raise UsageError(f"--passphrase-fd {fd}: {error.strerror}") from None
    return check_passphrase(data.removesuffix(b"\n"))


def ask_passphrase(prompt: str = "Passphrase", *, or_none: bool = False) -> bytes:
    """Ask on the terminal without showing what is typed.  What was typed before the question is dropped.

    With `or_none` an empty answer is one.
    """
    import getpass

    if not on_terminal():
        raise UsageError(
            "there is no terminal to ask for the passphrase on", "give it by a descriptor: --passphrase-fd N"
        )
    try:
        passphrase = os.fsencode(getpass.getpass(f"{prompt}: "))
    except EOFError:
        raise UsageError("no passphrase was given") from None
    except UnicodeError:
        raise UsageError("the passphrase is not valid text in this terminal") from None
    if or_none and not passphrase:
        return passphrase
    return check_passphrase(passphrase)


def ask_new_passphrase() -> bytes:
    """Ask for a new passphrase, twice.  An empty one is refused, and a short one is warned about."""
    for _ in range(ATTEMPTS):
        passphrase = ask_passphrase("New passphrase")
        if len(passphrase) < SHORT_PASSPHRASE:
            warn(f"that passphrase is short; {SHORT_PASSPHRASE} characters or more resist guessing")
        if ask_passphrase("The same again") == passphrase:
            return passphrase
        say("the two passphrases differ")
    raise UsageError("no passphrase was chosen")


# ── 3. running programs ───────────────────────────────────────────────────────────────────
#
# The rules of all that this tool runs:
#
# - A program is a list of words.  No shell takes a text of ours apart on the host.
# - A secret goes in by a descriptor: a pipe (`secret_fd`), a file in RAM (`memory_file`), or standard
#   input where a program takes it by no other way (`capture` with data, `stream`).  It is never a word
#   of the call, a variable of the environment, or a file on a disk.
# - What a program changes, a dry run only shows: `act`, `launch`, `succeed`, `stream`, `run_foreground`.
#   `capture` is for what only looks, and runs then as well.
# - Every status is read.  What failed is said by whoever called; why, in the program's own line.
# - Nothing runs for ever but what a person works in.


DEVNULL = -3  # as in subprocess, which is not loaded before something runs

# The two libraries as packages of a system, by the program that installs them.
SYSTEM_PACKAGES = {"apt-get": "python3-plumbum python3-yaml", "dnf": "python3-plumbum python3-pyyaml"}
INSTALL_HINTS = {
    "docker": "install Docker: https://docs.docker.com/engine/install/",
    "podman": "install Podman: https://podman.io/docs/installation",
    "aws": "the image needs the AWS CLI version 2",
}


# How a program begins the line that tells of its error ...
ERROR_WORD = r"(?i)(\S+: )?\[?(error|fatal)\b|An error occurred \("
# ... and what stands around that line: progress, advice, and that it gives up now.
ASIDE = (
    r"(?i)gpg: (AES\S* encrypted data|encrypted with|no gpg-agent|problem with the agent)"
    r"|gpg: decrypt_message failed"
    r"|(\S*/)?tar: (Exiting with failure status|Error is not recoverable)"
    r"|sudo: error initializing|dmesg\(1\) may|(Run|See) '|hint: |(\S+: )?warning: "
)


def error_line(text: str) -> str:
    """The line of a program's standard error that says why it failed; '' when none says anything.

    It is the first that begins with the program's own word for an error, or else the last one.
    """
    said = ""
    usage = False
    for line in filter(None, map(str.strip, text.splitlines())):
        if re.match(ASIDE, line):
            continue
        if re.match(ERROR_WORD, line):
            return brief(line.removeprefix("tazpod: error: "))
        usage = usage or line.lower().startswith("usage:")
        if not usage:  # how to call it is told after what was wrong with the call
            said = line
    return brief(said)


class Result(NamedTuple):
    """How a program ended: its status, its standard output, its standard error as text, its name."""

    code: int
    out: bytes
    err: str
    program: str = ""

    @property
    def reason(self) -> str:
        """Why it failed, in the words of the program, as far as it said so."""
        return error_line(self.err) or f"status {self.code}"


class Stage(NamedTuple):
    """One program of a pipeline, and the descriptors that it inherits."""

    argv: Sequence[str]
    pass_fds: tuple[int, ...] = ()


def way_to_install(python: str, managed: bool, here_is: Collection[str]) -> str:
    """What to type so that a Python gets the two libraries; `managed`: pip must not put anything there."""
    if managed and python.startswith("/usr/bin/"):
        for installer, packages in SYSTEM_PACKAGES.items():
            if installer in here_is:
                return f"sudo {installer} install {packages}"
    if "uv" in here_is:
        return f"uv run {quoted(os.path.abspath(__file__))}"
    if managed:
        return (
            f"{python} -m venv FOLDER, FOLDER/bin/pip install plumbum PyYAML, and run it by FOLDER/bin/python"
        )
    return f"{python} -m pip install plumbum PyYAML"


def need(module: str) -> Any:
    """Import one of the two libraries, or say which command installs them."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        import shutil
        import sysconfig

        own = os.path.join(os.path.dirname(os.path.dirname(sys.executable)), "pyvenv.cfg")
        mark = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")  # PEP 668
        system = not os.path.exists(own)
        managed = system and (os.path.exists(mark) or sys.executable.startswith("/usr/bin/"))
        programs = [name for name in (*SYSTEM_PACKAGES, "uv") if shutil.which(name)]
        raise MissingProgram(
            "the Python libraries plumbum and PyYAML are not installed",
            way_to_install(sys.executable, managed, programs),
        ) from None


def tool(name: str) -> Any:
    """The plumbum command object for a program on PATH."""
    plumbum = need("plumbum")  # here and not at the top: it costs more than all the rest of --help
    try:
        return plumbum.local[name]
    except plumbum.CommandNotFound:
        raise not_installed(name) from None


def not_installed(name: str) -> MissingProgram:
    """The error for a program that is not there."""
    hint = INSTALL_HINTS.get(name, f"install {name}")
    return MissingProgram(f"{name} is not installed, or not on PATH", hint)


def spawn(argv: Sequence[str], **options: Any) -> Any:
    """Start a program; a Popen.  The command that --debug shows is the object that is run.

    The one exception is a hurry: loading plumbum takes longer than all else on the way to the prompt,
    longer than a short word takes, and more memory than the rest of the guard.  So there, as
    long as nobody has loaded it, the Popen is made here as plumbum would make it.
    """
    try:
        if OPTIONS.hurry and "plumbum" not in sys.modules:
            return _spawn_at_once(argv, options)
        command = tool(argv[0])[argv[1:]]
        if OPTIONS.debug:
            _, *words = command.formulate()  # the first is where the program was found
            debug(quoted(argv[0], *words))
        return command.popen(**options)
    except ValueError as error:
        reason = str(error)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename == argv[0]:
            raise not_installed(argv[0]) from None
        reason = str(error.strerror)
    raise TazpodError(f"{argv[0]} could not be started: {reason}")


def _spawn_at_once(argv: Sequence[str], options: Mapping[str, Any]) -> Any:
    import subprocess

    if OPTIONS.debug:
        debug(quoted(*argv))
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {**os.environ, **(options.get("env") or {})}
    return subprocess.Popen(list(argv), **{**pipes, **options, "env": environment})


def _reap(processes: Iterable[Any]) -> None:
    """Kill what still runs of these, and read every status, so that none stays behind as a zombie."""
    for process in processes:
        if process.poll() is None:
            try:
                process.kill()
            except PermissionError:
                continue  # sudo runs as root: it is not ours to end, nor to wait for
        process.wait()


def capture(
    argv: Sequence[str],
    data: bytes = b"",
    *,
    pass_fds: tuple[int, ...] = (),
    limit: float | None = None,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run a program with `data` as its standard input and wait for it, `limit` or TIME_LIMIT seconds.

    A dry run runs it as well, so it is for programs that only look; `act` is for the others.
    Never raises for its status.  Raises MissingProgram, or TazpodError when it hangs.
    """
    import subprocess

    if limit is None:
        limit = TIME_LIMIT
    process = spawn(argv, pass_fds=pass_fds, env=env)
    try:
        out, err = process.communicate(data, timeout=limit)
    except subprocess.TimeoutExpired:
        raise TazpodError(f"{argv[0]} did not end within {limit:g} seconds") from None
    finally:
        _reap([process])
    return Result(process.returncode, out, err.decode(errors="replace"), argv[0])


def show(*stages: Sequence[str]) -> None:
    """Print a program, or a pipeline, that a dry run does not start, as a shell takes it."""
    emit(" | ".join(quoted(*argv) for argv in stages))


def act(
    argv: Sequence[str],
    data: bytes = b"",
    *,
    pass_fds: tuple[int, ...] = (),
    limit: float | None = None,
    env: Mapping[str, str] | None = None,
) -> Result:
    """`capture` for a program that changes something: a dry run shows it, and takes it as done."""
    if OPTIONS.dry_run:
        show(argv)
        return Result(0, b"", "")
    return capture(argv, data, pass_fds=pass_fds, limit=limit, env=env)


def launch(argv: Sequence[str], **options: Any) -> Any:
    """`spawn` for a program that changes something and goes on by itself; None in a dry run."""
    if OPTIONS.dry_run:
        show(argv)
        return None
    return spawn(argv, **options)


def succeed(argv: Sequence[str], what: str, hint: str = "", data: bytes = b"") -> Result:
    """Run a program that changes something and must succeed; `what` names the failure in the error."""
    result = act(argv, data)
    if result.code != 0:
        raise TazpodError(f"{what}: {result.reason}", hint)
    return result


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put Ctrl-C, SIGTERM and SIGHUP off until the end of what must not be left half done."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.signal(number, lambda which, _: came.append(which)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers):
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def as_root(argv: Sequence[str]) -> list[str]:
    """The argv that runs a program as root in the pod."""
    if os.geteuid() == 0:
        return list(argv)
    return ["sudo", "-n", *argv]


def signal_group(leader: int, number: int) -> None:
    """Send a signal to a group of processes; a dry run only shows it."""
    if OPTIONS.dry_run:
        show(["kill", f"-{number}", "--", f"-{leader}"])
    else:
        os.killpg(leader, number)


def memory_file(data: bytes = b"") -> int:
    """A descriptor of an anonymous file in RAM that holds `data` (memfd_create(2), Linux)."""
    fd = os.memfd_create("tazpod")
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """A descriptor that is closed at the end of what is done with it."""
    try:
        yield fd
    finally:
        os.close(fd)


def read_back(fd: int) -> bytes:
    """All that an open file holds, from its beginning."""
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(os.dup(fd), "rb") as file:
        return file.read()


def sha256(data: bytes = b"") -> Any:
    """hashlib's SHA-256.  It is loaded here and not at the top, since the way to the prompt needs none."""
    import hashlib

    return hashlib.sha256(data)


def digest_fd(fd: int) -> str:
    """The SHA-256 of a whole file, which is left at its beginning."""
    os.lseek(fd, 0, os.SEEK_SET)
    digest = sha256()
    piece = memoryview(bytearray(1 << 18))  # used again and again: new memory for each read costs more
    while True:
        count = os.readv(fd, [piece])
        if not count:
            break
        digest.update(piece[:count])
    os.lseek(fd, 0, os.SEEK_SET)
    return str(digest.hexdigest())


@contextlib.contextmanager
def secret_fd(secret: bytes) -> Iterator[int]:
    """The read end of a pipe that holds the secret, for a program that is told the descriptor's number."""
    read_end, write_end = os.pipe()
    with closing(read_end):
        with closing(write_end):
            os.write(write_end, secret)  # at most 4 KiB: a pipe takes it without a reader
        yield read_end


def stream(stages: Sequence[Stage], source: int, sink: int) -> list[Result]:
    """Run a pipeline from the descriptor `source` to the descriptor `sink`; a dry run only shows it.

    Every stage gives a result, and none of them is judged here.  A stage that wrote on after the next one
    had ended was killed by SIGPIPE; such a victim is not what went wrong, which `first_failure` knows.
    """
    import subprocess

    if OPTIONS.dry_run:
        show(*(stage.argv for stage in stages))
        return [Result(0, b"", "") for _ in stages]
    processes: list[Any] = []
    errors = [memory_file() for _ in stages]
    deadline = time.monotonic() + TIME_LIMIT
    upstream = source
    try:
        for number, stage in enumerate(stages):
            downstream = subprocess.PIPE
            if number == len(stages) - 1:
                downstream = sink
            process = spawn(
                stage.argv, stdin=upstream, stdout=downstream, stderr=errors[number], pass_fds=stage.pass_fds
            )
            if processes:
                processes[-1].stdout.close()  # else the stage before never sees SIGPIPE
            processes.append(process)
            upstream = process.stdout
        for process in processes:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                name = stages[processes.index(process)].argv[0]
                raise TazpodError(f"{name} did not end within {TIME_LIMIT:g} seconds") from None
        return [
            Result(process.returncode, b"", read_back(fd).decode(errors="replace"))
            for process, fd in zip(processes, errors)
        ]
    finally:
        _reap(processes)
        for fd in errors:
            os.close(fd)


def first_failure(stages: Sequence[Stage], results: Sequence[Result]) -> str:
    """What went wrong in a pipeline, or '' when every stage succeeded.

    A stage that was killed by SIGPIPE is named only when nothing else failed.
    """
    failed = [(s.argv[0], r) for s, r in zip(stages, results) if r.code != 0]
    real = [pair for pair in failed if pair[1].code not in (-signal.SIGPIPE, 141)] or failed
    if not real:
        return ""
    name, result = real[0]
    return f"{name}: {result.reason.removeprefix(f'{name}: ')}"


def run_foreground(
    argv: Sequence[str],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    cwd: Path | None = None,
    own_session: bool = False,
    env: Mapping[str, str] | None = None,
    after_start: Callable[[Any], None] | None = None,
) -> int:
    """Run a program on this terminal and give its status as a shell would; a dry run only shows it.

    While it runs, Ctrl-C is for the program, and afterwards the terminal's settings are put back.
    With `own_session` the program goes on when the terminal is closed.  No signal from there reaches it,
    and what it says is passed on from here for as long as somebody reads it.
    """
    import subprocess

    if OPTIONS.dry_run:
        show(argv)
        return OK
    talk = None
    if own_session:
        talk = subprocess.PIPE
    interrupts: list[int] = []
    with _terminal_lent(interrupts), contextlib.ExitStack() as ending:
        process = spawn(
            argv, stdin=stdin, stdout=stdout, stderr=talk, cwd=cwd, start_new_session=own_session, env=env
        )
        ending.callback(_end, process)
        if after_start:
            after_start(process)
        if talk is not None:
            for line in process.stderr:
                relay(line.decode(errors="replace"))
        code: int = process.wait()
    if interrupts and code in (0, 1) and not own_session:
        return INTERRUPTED  # docker gives 0 for a command that it has left behind, podman 1
    if code < 0:
        return 128 - code
    return code


@contextlib.contextmanager
def _terminal_lent(interrupts: list[int]) -> Iterator[None]:
    """Let a program have the terminal: Ctrl-C, which is noted, is for it, and its settings are put back."""
    import termios

    settings = None
    with contextlib.suppress(termios.error, OSError, ValueError):
        settings = termios.tcgetattr(0)
    # Not SIG_IGN: exec would hand that down, and nothing in the shell could be interrupted.
    previous = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if settings is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, settings)


def _end(process: Any) -> None:
    """End a program that still runs because something else went wrong: ask it first, then kill it."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(Exception):
            process.wait(timeout=2)
    _reap([process])


# ── 4. config ─────────────────────────────────────────────────────────────────────────────

CONTAINER_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]+"
IMAGE_NAME = (
    r"(?:[a-zA-Z0-9][a-zA-Z0-9.-]*(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?::[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
USER_NAME = r"[a-z_][a-z0-9_-]{0,31}"
SIZE = r"[1-9][0-9]{0,8}[kmgKMG]"
RELATIVE_PATH = r"[^-\0\n][^\0\n]*"
COMMAND = r"[^\0]+"
MTU = r"auto|off|[1-9][0-9]{2,4}"
ADDRESS = r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}|[0-9a-fA-F:]*:[0-9a-fA-F:]+"
ENGINE = r"auto|docker|podman"
SHELL_PATH = r"/[^\0\n]+"
PORT = r"(?:(?:\[[0-9a-fA-F:]+\]|[0-9.]+):)?(?:[0-9-]*:)?[0-9]+(?:-[0-9]+)?(?:/(?:tcp|udp|sctp))?"
MOUNT = r"([^-:\0\n][^:\0\n]*):(/[^:\0\n]+)(:[a-zA-Z,]+)?"
# What aws is told.  It reads a file where a word begins with file://, so no such word comes from here.
AWS_PROFILE = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,127}|"
AWS_BUCKET = r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"
AWS_PREFIX = r"(?!.*(?:\.\.|//))[A-Za-z0-9][A-Za-z0-9._/-]{0,198}[A-Za-z0-9]"
AWS_REGION = r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}"
AWS_ACCOUNT = r"[0-9]{12}|"
AWS_ROLE = r"(?!-)[A-Za-z0-9_+=,.@-]{0,64}"
WEB_ADDRESS = r"https?://(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/#?&=%+-]*)?|"
VARIABLE = r"(?!HOST_CWD$)[A-Za-z_][A-Za-z0-9_]*"
# A folder of the home: relative, never ~/.ssh or the place of the secrets, and never up out of it.
IN_HOME = (
    r"(?!(?:\.ssh|secrets|\.secrets\.transit|\.vault_pass|\.vault_state)(?:/|$))"
    r"(?!.*(?:^|/)\.\.?(?:/|$))[^/\0\n-][^\0\n]*[^/\0\n]"
)
# A file of the open vault, by its path there; never one of ours.
IN_VAULT = r"(?!\.vault_)(?!.*(?:^|/)\.\.?(?:/|$))[^/\0\n-][^\0\n]*"


class Config(NamedTuple):
    """The effective configuration of one project."""

    project: Path
    container_name: str
    image: str = DEFAULT_IMAGE
    user: str = DEFAULT_USER
    dockerfile: str = DOCKERFILE_PATH
    context: str = "."
    ghost_mode: bool = True
    debug: bool = False
    aws_profile: str = "tazlab-bootstrap"
    aws_bucket: str = "tazlab-storage"
    aws_prefix: str = DEFAULT_PREFIX
    aws_region: str = "eu-central-1"
    aws_endpoint: str = ""
    aws_named: bool = False  # config.yaml says something of the storage
    aws_variables: tuple[str, ...] = ()  # set on this side, and handed to the pod by name
    proxies: tuple[str, ...] = ()  # the same
    aws_start_url: str = ""
    aws_account_id: str = ""
    aws_role_name: str = ""
    vault_size: str = "64m"
    vault_keep: int = 5
    vault_retention: int = 50
    vault_autolock: int = 0
    vault_binds: tuple[str, ...] = (".aws",)
    sync_interval: int = 300
    push_on_exit: bool = True
    vault_agents: bool = False
    vault_history: bool = False
    vault_env: tuple[tuple[str, str], ...] = ()  # variables, each with the file of the vault that it is from
    identity: tuple[str, ...] = AGENTS
    ssh_agent: bool = False
    engine: str = "auto"
    program: str = "docker"  # what drives the engine, as `chosen_engine` has it
    mtu: str = "auto"
    dns: tuple[str, ...] = ("1.1.1.1", "1.0.0.1")
    docker_args: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    git_mounts: tuple[str, ...] = ()  # of a git worktree, approved; only a container that is made has them
    env: tuple[tuple[str, str | None], ...] = ()  # None: the value that it has on the host
    shell: str = DEFAULT_SHELL
    post_up: str = ""
    pre_lock: str = ""

    @property
    def home(self) -> str:
        """The operator's home in the container."""
        return f"/home/{self.user}"

    @property
    def secrets(self) -> str:
        """Where the open vault is mounted in the container."""
        return f"{self.home}/secrets"

    @property
    def binds(self) -> tuple[str, ...]:
        """The folders of the home that the open vault holds; tokens lie in .aws, so it is always one."""
        agents = AGENTS if self.vault_agents else ()
        return outermost((".aws", *self.vault_binds, *agents))

    @property
    def links(self) -> tuple[str, ...]:
        """What of the home is linked into the envelope: `identity`, less what the vault holds."""

        def within(name: str, other: str) -> bool:
            return f"{name}/".startswith(f"{other}/")

        names = outermost(self.identity)
        return tuple(n for n in names if not any(within(n, b) or within(b, n) for b in self.binds))

    @property
    def run_folder(self) -> Path:
        """Where host and pod see each other's sessions."""
        return self.project / ENVELOPE / "run"


class Key(NamedTuple):
    """One key of config.yaml: the field it sets, its type, what it (each of a list) may look like."""

    field: str
    kind: type
    pattern: str | None = None
    most: int = 0
    values: str | None = None  # of a mapping


KEYS: dict[str, Key] = {
    "image": Key("image", str, IMAGE_NAME),
    "container_name": Key("container_name", str, CONTAINER_NAME),
    "user": Key("user", str, USER_NAME),
    "build.dockerfile": Key("dockerfile", str, RELATIVE_PATH),
    "build.context": Key("context", str, RELATIVE_PATH),
    "features.ghost_mode": Key("ghost_mode", bool),
    "features.debug": Key("debug", bool),
    "aws_sso.profile": Key("aws_profile", str, AWS_PROFILE),
    "aws_sso.bucket": Key("aws_bucket", str, AWS_BUCKET),
    "aws_sso.prefix": Key("aws_prefix", str, AWS_PREFIX),
    "aws_sso.region": Key("aws_region", str, AWS_REGION),
    "aws_sso.endpoint_url": Key("aws_endpoint", str, WEB_ADDRESS),
    "aws_sso.start_url": Key("aws_start_url", str, WEB_ADDRESS),
    "aws_sso.account_id": Key("aws_account_id", str, AWS_ACCOUNT),
    "aws_sso.role_name": Key("aws_role_name", str, AWS_ROLE),
    "vault.size": Key("vault_size", str, SIZE),
    "vault.keep": Key("vault_keep", int, most=1000),
    "vault.retention": Key("vault_retention", int, most=100000),
    "vault.autolock": Key("vault_autolock", int, most=10080),
    "sync.interval": Key("sync_interval", int, most=86400),
    "sync.push_on_exit": Key("push_on_exit", bool),
    "vault.binds": Key("vault_binds", list, IN_HOME),
    "vault.agents": Key("vault_agents", bool),
    "vault.history": Key("vault_history", bool),
    "vault.env": Key("vault_env", dict, VARIABLE, values=IN_VAULT),
    "identity": Key("identity", list, IN_HOME),
    "features.ssh_agent": Key("ssh_agent", bool),
    "engine": Key("engine", str, ENGINE),
    "network.mtu": Key("mtu", str, MTU),
    "network.dns": Key("dns", list, ADDRESS),
    "docker.args": Key("docker_args", list, COMMAND),
    "ports": Key("ports", list, PORT),
    "mounts": Key("mounts", list, MOUNT),
    "env": Key("env", dict, VARIABLE),
    "shell": Key("shell", str, SHELL_PATH),
    "hooks.post_up": Key("post_up", str, COMMAND),
    "hooks.pre_lock": Key("pre_lock", str, COMMAND),
}
SECTIONS = {name.split(".")[0] for name in KEYS if "." in name}
# Seen in files that Go TazPod wrote: accepted, whatever they hold.
LEGACY_KEYS = ("mode", "ghost_mode", "providers", "active_provider", "version")


def outermost(names: Iterable[str]) -> tuple[str, ...]:
    """The folders that lie in no other of them."""
    clean = dict.fromkeys(os.path.normpath(name) for name in names)
    return tuple(name for name in clean if not any(str(folder) in clean for folder in Path(name).parents))


def legal_name(folder: str) -> str:
    """A container name that Docker accepts, made from any folder name."""
    stem = re.sub(r"[^a-zA-Z0-9_.-]+", "-", folder).strip("-_.")[:59].rstrip("-_.")
    return f"{stem or 'project'}-lab"


def find_project(start: Path) -> Path | None:
    """The folder at or above `start` that has a `.tazpod/`, as git finds its own."""
    for folder in (start, *start.parents):
        if (folder / ENVELOPE).is_dir():
            return folder
    return None


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a YAML mapping, dotted below a section, with their nodes."""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if value.id == "mapping" and name in SECTIONS:
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value


def _kind_of(node: Any) -> str:
    """What YAML takes a node for: `mapping`, `sequence`, or a scalar's `str`, `int`, `bool`, `null`."""
    if node.id != "scalar":
        return str(node.id)
    return str(node.tag).rsplit(":", 1)[-1]


def _text_of(node: Any) -> str:
    if node.id != "scalar":
        raise ValueError("must be text")
    if re.search("[\ud800-\udfff]", node.value):  # YAML's \uD800: no file, argument or terminal takes it
        raise ValueError("holds a character that is none")
    return str(node.value)


def _legal(key: Key, text: str) -> str:
    if key.pattern and not re.fullmatch(key.pattern, text):
        raise ValueError(f"{brief(text)!r} is not a legal value")
    return text


def _read_text(key: Key, node: Any) -> str:
    kind = _kind_of(node)
    if key.pattern == MTU and kind == "bool" and node.value.lower() in ("off", "no", "false"):
        return "off"  # for YAML 1.1 that is a boolean
    as_written = key.pattern == MTU or (kind == "int" and key.field.endswith("_id"))  # mostly without quotes
    if kind in ("mapping", "sequence") or not (kind == "str" or as_written):
        raise ValueError("must be text")
    return _legal(key, _text_of(node))


def _read_flag(key: Key, node: Any) -> bool:
    if _kind_of(node) != "bool":
        raise ValueError("must be true or false")
    return node.value.lower() in ("true", "yes", "on")


def _read_number(key: Key, node: Any) -> int:
    if _kind_of(node) != "int":
        raise ValueError("must be a whole number")
    if not node.value.isdigit() or int(node.value) > key.most:
        raise ValueError(f"must be a whole number from 0 to {key.most}")
    return int(node.value)


def _read_list(key: Key, node: Any) -> tuple[str, ...]:
    if _kind_of(node) != "sequence":
        raise ValueError("must be a list")
    return tuple(_legal(key, _text_of(item)) for item in node.value)


def _read_mapping(key: Key, node: Any) -> tuple[tuple[str, str | None], ...]:
    if _kind_of(node) != "mapping":
        raise ValueError("must be a mapping")
    values: dict[str, str | None] = {}
    for left, right in node.value:
        name = _legal(key, _text_of(left))
        if name in values:  # what is approved would not be all that docker is told
            raise ValueError(f"{name} is there twice")
        values[name] = None
        if _kind_of(right) != "null":
            values[name] = _text_of(right)
        if key.values and not re.fullmatch(key.values, values[name] or ""):
            raise ValueError(f"{name} must be a file of the vault, by its path there")
    return tuple(values.items())


# How a value of each type is read from its node: ValueError says what was wanted instead.
READERS: dict[type, Callable[[Key, Any], Any]] = {
    str: _read_text,
    bool: _read_flag,
    int: _read_number,
    list: _read_list,
    dict: _read_mapping,
}


def _settings(text: str, where: Path) -> Iterator[tuple[str, Any]]:
    """The keys that a YAML text sets, dotted below a section, with their nodes."""
    yaml = need("yaml")
    loader = yaml.SafeLoader
    if len(text) < 8192:  # the faster one, in C, crashes when a text is nested deeper than its stack
        loader = getattr(yaml, "CSafeLoader", loader)
    try:
        root = yaml.compose(text, loader)
    except RecursionError:
        raise UsageError(f"{where}: not valid YAML: nested too deep") from None
    except yaml.YAMLError as error:
        place = str(where)
        mark = getattr(error, "problem_mark", None)
        if mark:
            place += f":{mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{place}: not valid YAML: {problem}") from None
    if root is None or _kind_of(root) == "null":
        return iter(())
    if root.id != "mapping":
        raise UsageError(f"{where}:{root.start_mark.line + 1}: must be a mapping of keys")
    return _flatten(root)


UNKNOWN_TOLD = 10  # keys of a config.yaml


def _unknown(name: str) -> str:
    import difflib

    text = f"unknown key {brief(name)}"
    for near in difflib.get_close_matches(name, KEYS, n=1):
        text += f"; did you mean {near}?"
    return text


def parse_config(text: str, project: Path) -> tuple[Config, list[str]]:
    """The configuration that a config.yaml says, and warnings.  UsageError names file, line, key."""
    where = project / CONFIG_PATH
    values: dict[str, Any] = {}
    seen: set[str] = set()
    twice: dict[str, str] = {}
    unknown: list[tuple[str, str]] = []
    for name, node in _settings(text, where):
        place = f"{where}:{node.start_mark.line + 1}"
        if name in seen and name in KEYS:
            twice[name] = f"{place}: {name} is there twice; the last one counts"
        seen.add(name)
        if name == "ghost_mode" and str(node.value).lower() in ("false", "no", "off"):
            values.setdefault("ghost_mode", False)  # where older files kept it
        if name.split(".")[0] in LEGACY_KEYS or _kind_of(node) == "null":
            continue
        if name in SECTIONS:
            raise UsageError(f"{place}: {name}: must be a mapping of keys")
        if name not in KEYS:
            unknown.append((place, name))
            continue
        key = KEYS[name]
        try:
            values[key.field] = READERS[key.kind](key, node)
        except ValueError as error:
            if node.value == "" and Config._field_defaults.get(key.field) == "":
                continue  # a default that is written out: `hooks.pre_lock: ""`, say
            raise UsageError(f"{place}: {name}: {error}") from None
    warnings = list(twice.values())
    warnings += [f"{place}: {_unknown(name)}" for place, name in unknown[:UNKNOWN_TOLD]]
    if unknown[UNKNOWN_TOLD:]:
        warnings.append(f"{where}: {len(unknown) - UNKNOWN_TOLD} more unknown keys")
    values.setdefault("container_name", legal_name(project.name))
    named = any(field.startswith("aws_") for field in values)
    return Config(project, **values, aws_named=named), warnings


def setting_lines(text: str) -> dict[str, int]:
    """The line of each key that a config.yaml sets."""
    lines = {}
    for name, node in _settings(text, Path(CONFIG_PATH)):
        if _kind_of(node) != "null":
            lines[name] = node.start_mark.line + 1
    return lines


def own_archive() -> str:
    """The archive, tazpod.pyz, that this was loaded from; '' where it is a file of its own."""
    folder = os.path.dirname(__file__)
    if os.path.isfile(folder):
        return folder
    return ""


def tool_stamp() -> tuple[int, ...]:
    """What tells this file from a newer one in its place, which may have got the same inode."""
    with contextlib.suppress(FileNotFoundError):
        info = os.stat(own_archive() or __file__)
        return info.st_ino, info.st_ctime_ns, info.st_size
    return ()


def state_folder() -> Path:
    """What is remembered outside the projects, where nothing in a container can write."""
    given = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(given):
        return home_folder() / ".local/state/tazpod"
    return Path(given, "tazpod")


def project_state(project: Path) -> Path:
    """The folder in which this host remembers one project; nothing in a container can write there.

    The names of two projects whose paths are long may be the same, so every record in it holds the
    path of its project, and whoever reads a record checks that.
    """
    name = re.sub("[^A-Za-z0-9._-]", lambda found: f"%{os.fsencode(found[0]).hex()}", str(project))
    return state_folder() / "by-project" / name[-200:]


CONFIG_LIMIT = 64 << 10  # bytes of config.yaml: to read so many takes a second


def config_text(project: Path, owners: Collection[int] = ()) -> str:
    """What the project's config.yaml says; nothing when there is none."""
    path = project / CONFIG_PATH
    try:
        data = read_shared(path, owners)
        if len(data) > CONFIG_LIMIT:
            raise UsageError(f"{path}: is larger than {CONFIG_LIMIT >> 10} KiB")
        return data.decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8 text") from None


def for_this_host(config: Config, *, hand_over: bool = True) -> Config:
    """The config with the program that drives its engine, and what of this side goes into the container.

    What goes in are variables, by their names; none without `hand_over`.
    """
    config = config._replace(program=chosen_engine(config))
    if not hand_over:
        return config
    aws = re.compile(r"AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|ENDPOINT_URL\w*)")
    proxy = re.compile(r"(https?|ftp|all|no)_proxy", re.IGNORECASE)
    variables, proxies = (tuple(sorted(filter(names.fullmatch, os.environ))) for names in (aws, proxy))
    return config._replace(aws_variables=variables, proxies=proxies)


def on_path(name: str) -> str:
    """Where a program is on PATH; '' for nowhere."""
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder or ".", name)
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    return ""


def is_podman(path: str) -> bool:
    """Whether a program that is called docker is what some systems put there: a script that runs Podman."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(1024)
        return start.startswith(b"#!") and b"podman" in start
    return False


def remembered_engine(project: Path) -> str:
    """The engine on which this host has made the container of a project; '' for none."""
    with contextlib.suppress(OSError, ValueError):
        name, place = (project_state(project) / "engine").read_text(encoding="utf-8").split("\n", 1)
        if place == f"{project}\n" and re.fullmatch(ENGINE, name):
            return name
    return ""


def remember_engine(config: Config) -> None:
    """Note on which engine the container of a project is made: two would work on one vault."""
    path = project_state(config.project) / "engine"
    private_folder(path.parent)
    write_whole(path, f"{config.program}\n{config.project}\n".encode())


def chosen_engine(config: Config) -> str:
    """The engine of a project: the one that is named, by TAZPOD_ENGINE first.

    Else the one that is there.  With both, the one on which the container was made, or else Docker
    where it answers: that is asked only where there is no container yet.
    """
    choice = os.environ.get("TAZPOD_ENGINE") or config.engine
    if not re.fullmatch(ENGINE, choice):
        raise UsageError(f"TAZPOD_ENGINE: {choice!r} is no engine", "auto, docker or podman")
    if choice != "auto":
        return choice
    docker_path = on_path("docker")
    if not on_path("podman"):
        return "docker"
    if not docker_path or is_podman(docker_path):
        return "podman"
    kept = remembered_engine(config.project)
    if kept or os.environ.get("DOCKER_HOST"):
        return kept or "docker"
    answer = capture(["docker", "version", "--format", "{{.Server.Version}}"], limit=ASK_LIMIT)
    if answer.code == 0:
        return "docker"
    return "podman"


def in_pod() -> bool:
    """Whether this runs inside the container: HOST_CWD is set and /workspace is a mount.

    Asked of the mount table (proc_pid_mountinfo(5)): a folder that is mounted within one file system,
    as with the storage driver vfs, shows by nothing else that it is a mount.
    """
    if not os.environ.get("HOST_CWD"):
        return False
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as table:
        return any(line.split()[4:5] == [WORKSPACE.encode()] for line in table)
    return False


def home_folder() -> Path:
    """The home of the person on the host; one that is not there where nobody knows it."""
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        return Path("/nonexistent")
    return Path(home)


def host_path(config: Config, path: str) -> str:
    """The source of a mount: a path from the project or the home made absolute, a volume's name as it is."""
    first = path.partition("/")[0]
    if first == "~":
        return str(home_folder() / path[2:])
    if first in (".", ".."):
        return os.path.normpath(config.project / path)
    return path


def make_folders(root: Path, name: str) -> bool:
    """Make what is missing of a path below `root`, 0700; whether all of it are real folders, no links."""
    place = root
    for part in Path(name).parts:
        place /= part
        with contextlib.suppress(OSError):
            make_folder(place)
        missing = OPTIONS.dry_run and not os.path.lexists(place)
        if place.is_symlink() or not (place.is_dir() or missing):
            return False
    return True


# -- files where others may write
#
# A project is mounted into its container, so whoever is in there may swap any name in it at any moment,
# while this host side, perhaps as root, works on the same names.  So nothing below a project is
# reached by its path: the folder is opened once, and what lies in it is reached by that descriptor.
#
# A dry run changes nothing: what would change a file says so instead.

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_IN_PLACE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a fifo waits for nobody


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Root as somebody else: what is made is theirs, and what is not theirs stays as it is."""
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextlib.contextmanager
def as_owner(folder: int) -> Iterator[None]:
    """Root acts as the owner of a folder that is open.

    What is made there is the owner's from its beginning, and what the owner may not touch is not
    touched: root never gives anything away, since that could be exchanged for something else just then.
    """
    owner = os.fstat(folder)
    if os.geteuid() == 0 and owner.st_uid != 0:
        with acting_as(owner.st_uid, owner.st_gid):
            yield
    else:
        yield


def _envelope_parts(path: Path) -> tuple[Path, list[str]]:
    """The part of a path that is taken as it is, and the names after it that may be no links."""
    names = list(path.parts)
    if ENVELOPE not in names:
        return path, []
    before = names[::-1].index(ENVELOPE) + 1  # the last: a project may lie in some other .tazpod
    return Path(*names[:-before]), names[-before:]


def _enter_folder(folder: int, name: str, place: Path) -> int:
    """Open a folder in a folder, and close that one.  `place` is its path, for the error."""
    try:
        below = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        what = error.strerror
        if place.is_symlink():
            what = "is a link, not a folder"
        raise OSError(error.errno, what, str(place)) from None
    os.close(folder)
    return below


@contextlib.contextmanager
def folder_at(path: Path, make: bool = False) -> Iterator[int]:
    """A descriptor of a folder, for work on the names in it; with `make`, missing folders are made, 0700.

    From the envelope on no part of the path may be a link.  Root works as the folder's owner.
    """
    place, names = _envelope_parts(path)
    while make and names[:1] != [ENVELOPE] and not place.is_dir():
        names.insert(0, place.name)
        place = place.parent
    folder = os.open(place, _FOLDER)
    try:
        for name in names:
            place /= name
            if make:
                with as_owner(folder), contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=folder)
            folder = _enter_folder(folder, name, place)
        with as_owner(folder):
            yield folder
    except OSError as error:
        if error.errno is None or os.path.isabs(error.filename or ""):
            raise
        raise OSError(error.errno, error.strerror, str(path / (error.filename or ""))) from None
    finally:
        os.close(folder)


def look_at(path: Path) -> os.stat_result:
    """What a file is that others may exchange (lstat(2)); through no link of the envelope."""
    with folder_at(path.parent) as folder:
        return os.stat(path.name, dir_fd=folder, follow_symlinks=False)


def private_folder(path: Path) -> Path:
    """Make a folder, 0700, and what is missing above it, unless it is there."""
    if OPTIONS.dry_run:
        if not path.is_dir():
            would(f"make {path}")
        return path
    with folder_at(path, make=True):
        return path


def make_folder(path: Path) -> None:
    """Make a folder, 0700, in one that must be there; nothing when something of that name is there."""
    if os.path.lexists(path) or would(f"make {path}"):
        return
    with folder_at(path.parent) as folder, contextlib.suppress(FileExistsError):
        os.mkdir(path.name, 0o700, dir_fd=folder)


def open_regular(folder: int, name: str, flags: int = os.O_RDONLY) -> int:
    """Open a regular file in an open folder, and nothing else.

    What is there is looked at first: to open a fifo or a device does something by itself.
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC
    if sys.platform != "linux":  # a device that comes between the two calls is opened, but not used
        must_be_regular(os.stat(name, dir_fd=folder, follow_symlinks=False))
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    with closing(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)) as seen:
        must_be_regular(os.fstat(seen))
        return os.open(f"/proc/self/fd/{seen}", flags)


def all_below(folder: Path) -> Iterator[Path]:
    """What lies below a folder on its file system, each folder before what is in it.

    Without recursion, as others may nest folders as deep as they like; what cannot be read is passed over.
    """
    folders = [folder]
    while folders:
        found: list[Path] = []
        with contextlib.suppress(OSError):
            found = list(folders.pop().iterdir())
        for path in found:
            yield path
            with contextlib.suppress(OSError):
                info = path.lstat()
                if stat.S_ISDIR(info.st_mode) and info.st_dev == folder.lstat().st_dev:
                    folders.append(path)


def must_be_regular(info: os.stat_result) -> None:
    """OSError unless this is of a regular file."""
    if stat.S_ISLNK(info.st_mode):
        raise OSError(errno.ELOOP, "is a link, not a file")
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file")


def open_shared(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file that the container may write; OSError for whatever else is there."""
    with folder_at(path.parent) as folder:
        try:
            return open_regular(folder, path.name, flags)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def read_shared(path: Path, owners: Collection[int] = ()) -> bytes:
    """What such a file holds, if it is a small one: it must not fill our memory.

    With `owners`, a file that belongs to anybody else is refused.
    """
    with os.fdopen(open_shared(path), "rb") as file:
        if owners:
            refuse_strangers(path, os.fstat(file.fileno()).st_uid, owners)
        data = file.read(SHARED_LIMIT + 1)
    if data is None:  # /proc has files that have nothing to give just now
        raise OSError(errno.EAGAIN, "gives nothing", str(path))
    if len(data) > SHARED_LIMIT:
        raise OSError(errno.EFBIG, "is too large for what it is", str(path))
    return data


def read_json(path: Path) -> dict[str, Any]:
    """What such a file says in JSON; nothing when it cannot be read, or is no mapping."""
    try:
        data = json.loads(read_shared(path))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict):
        return {}
    return data


def create_file(path: Path, mode: int = 0o600) -> int:
    """A descriptor of a new file; FileExistsError when there is something of that name.

    In a dry run nobody sees what is written there.
    """
    if OPTIONS.dry_run:
        return nowhere()
    with folder_at(path.parent) as folder:
        return os.open(path.name, _NEW_FILE, mode, dir_fd=folder)


def nowhere() -> int:
    """A descriptor that takes what is written to it, for a dry run."""
    if sys.platform == "linux":
        return memory_file()
    return os.open(os.devnull, os.O_RDWR)


def remove_file(path: Path) -> None:
    """Take a file away, if it is there; a link is taken away itself."""
    if OPTIONS.dry_run:
        if os.path.lexists(path):
            would(f"remove {path}")
        return
    with contextlib.suppress(FileNotFoundError), folder_at(path.parent) as folder:
        os.unlink(path.name, dir_fd=folder)


def remove_folder(path: Path) -> None:
    """Take an empty folder away."""
    if would(f"remove {path}"):
        return
    with folder_at(path.parent) as folder:
        os.rmdir(path.name, dir_fd=folder)


@contextlib.contextmanager
def empty_folder(prefix: str) -> Iterator[Path]:
    """A folder for as long as this lasts, for a program that is to find nothing there."""
    import tempfile

    if OPTIONS.dry_run:
        yield Path(tempfile.gettempdir(), f"{prefix}DIR")
        return
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        yield Path(name)


def set_mode(path: Path | int, mode: int) -> None:
    """Set the mode of a file or folder, by a path where nobody else writes, or by a descriptor."""
    if not would(f"set the mode of {path} to {mode:04o}"):
        os.chmod(path, mode)


def set_owner(path: Path, uid: int, gid: int) -> None:
    """Give a file or folder of root's to somebody else, where nobody else writes."""
    if not would(f"give {path} to user {uid}"):
        os.chown(path, uid, gid, follow_symlinks=False)


def copy_file(source: Path, target: Path) -> None:
    """Copy a regular file into a new one."""
    import shutil

    if would(f"write {target}"):
        return
    with os.fdopen(open_shared(source), "rb") as old, os.fdopen(create_file(target), "wb") as new:
        shutil.copyfileobj(old, new)


def copy_tree(source: Path, target: Path) -> None:
    """Copy what a folder holds into another one, links as links."""
    import shutil

    if not would(f"write {target}"):
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)


def second_name(path: Path, target: Path) -> None:
    """Give a file a second name; OSError where the file system knows no hard links."""
    if not would(f"write {target}"):
        os.link(path, target)


def write_in_place(path: Path, data: bytes) -> None:
    """Write over the beginning of a file, which needs no room on a disk that is full."""
    if would(f"write {path}"):
        return
    with closing(os.open(path, _IN_PLACE, 0o600)) as fd:
        os.pwrite(fd, data, 0)


def rename_file(path: Path, name: str) -> Path:
    """Give a file another name in its folder, in place of what had that name; its new path."""
    target = path.with_name(name)
    if would(f"write {target}"):
        return target
    with folder_at(path.parent) as folder:
        os.replace(path.name, name, src_dir_fd=folder, dst_dir_fd=folder)
    return target


def link_to(path: Path, target: str) -> None:
    """Make a symbolic link, in place of what was there."""
    if would(f"link {path} to {target}"):
        return
    temporary = temporary_beside(path)
    with folder_at(path.parent) as folder:
        os.symlink(target, temporary.name, dir_fd=folder)
        os.replace(temporary.name, path.name, src_dir_fd=folder, dst_dir_fd=folder)


def random_hex(size: int) -> str:
    """A name that nobody can guess, of `size` bytes."""
    return os.urandom(size).hex()


def temporary_beside(path: Path) -> Path:
    """A name for what will replace `path`: hidden, and known as stale by its ending."""
    return path.with_name(f".{path.name.lstrip('.')}.{random_hex(4)}.tmp")


def write_whole(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file atomically: a reader sees the old content or the new, never half."""
    if would(f"write {path}"):
        return
    temporary = temporary_beside(path).name
    with folder_at(path.parent) as folder:
        fd = os.open(temporary, _NEW_FILE, mode, dir_fd=folder)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise


def _open_lock(path: Path) -> int:
    """A descriptor of the file of a lock, which is made when it is missing."""
    for _ in range(ATTEMPTS):  # another tazpod may make it, or the container take it away, just now
        try:
            return open_shared(path, os.O_RDWR)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                return create_file(path)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return open_shared(path)  # which locks as well
    raise OSError(errno.EBUSY, "somebody keeps removing it", str(path))


# What may take long under a lock; whoever holds it writes the word into the lock's file.
LONG_WORK = {b"pull": "pulling the image", b"hook": "running hooks.post_up"}


def tell_work(path: Path, work: bytes) -> None:
    """Tell whoever waits for a lock that we hold what takes so long."""
    if OPTIONS.dry_run:
        return
    with contextlib.suppress(OSError), closing(open_shared(path, os.O_RDWR)) as fd:
        os.ftruncate(fd, 0)
        os.pwrite(fd, work, 0)


@contextlib.contextmanager
def locked_file(path: Path, what: str, wait: float = WAIT_LIMIT) -> Iterator[int]:
    """Hold an exclusive flock(2) on a file; host and pod see the same one.  A dry run holds none.

    Where the disk is read-only and the file missing, there can be no lock.  Then whoever would wait for
    it goes on without, since nothing can be written there; whoever would not wait gets none.
    """
    fd = -1
    if not OPTIONS.dry_run:
        try:
            fd = _open_lock(path)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            if wait < WAIT_LIMIT:
                raise Busy(f"{path}: the disk is read-only, so nothing can be locked there") from None
    if fd < 0:
        yield fd
        return
    try:
        start = time.monotonic()
        told = ""
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                passed = time.monotonic() - start
                doing = LONG_WORK.get(os.pread(fd, 20, 0), what)
                if passed >= wait:
                    raise Busy(
                        f"another tazpod has been {what} for over {wait:g} seconds ({path})",
                        "wait for it, or end it, and try again",
                    ) from None
                if passed > 1 and told != doing:
                    say(f"waiting for another tazpod that is {doing}")
                    told = doing
                time.sleep(0.05)
        yield fd
    finally:
        os.close(fd)


def is_alive(path: Path) -> bool:
    """Whether somebody holds the flock on a file: no only when it is not there, or the lock can be got.

    A disk in trouble is no sign of death.
    """
    try:
        fd = open_shared(path)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL)
    with closing(fd):
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # two that look at once do not see each other
        except OSError:
            return True
    return False


def read_record(project: Path, name: str) -> dict[str, Any]:
    """What this host remembers of a project under a name; nothing when that is of another project."""
    record = read_json(project_state(project) / name)
    if record.pop("project", "") != str(project):
        return {}
    return record


def write_record(project: Path, name: str, record: Mapping[str, Any]) -> None:
    """Remember something of a project under a name."""
    folder = private_folder(project_state(project))
    write_whole(folder / name, json.dumps({"project": str(project), **record}).encode())


def projects_file() -> Path:
    """Where this host remembers its projects, one a line: init gives each a container name of its own."""
    return state_folder() / "projects"


def other_projects(project: Path) -> list[Path]:
    """The projects of this host that are still there, without this one."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        lines = projects_file().read_text(encoding="utf-8").split("\n")
        others = [Path(line) for line in lines if line not in ("", str(project))]
        return [other for other in others if (other / CONFIG_PATH).is_file()]
    return []


def free_name(project: Path) -> str:
    """A container name for a new project that no other project of this host has."""
    taken = set()
    for other in other_projects(project):
        with contextlib.suppress(TazpodError, OSError, UnicodeDecodeError):
            text = read_shared(other / CONFIG_PATH).decode()
            taken.add(parse_config(text, other)[0].container_name)
    for prefix in ("", f"{project.parent.name}-", f"{os.stat(project).st_ino:x}-"):
        name = legal_name(prefix + project.name)
        if name not in taken:
            break
    return name


def free_prefix(project: Path, container_name: str) -> str:
    """Where in the storage a new project may put its vault: a further one of this host beside the first."""
    if not other_projects(project):
        return DEFAULT_PREFIX
    return f"tazpod/{container_name.removesuffix('-lab')}"


def remember_project(project: Path) -> None:
    """Add a project to those of this host; losing the list is harmless."""
    with contextlib.suppress(OSError, UnicodeError):
        path = projects_file()
        others = other_projects(project)
        private_folder(path.parent)
        write_whole(path, "".join(f"{known}\n" for known in (*others, project)).encode())


# -- what a project may have of this host
#
# Whoever writes config.yaml (a clone's author, a program in the container) must not reach the host by
# it.  So the host acts only on values that its person has approved: the defaults and what `init` wrote
# are approved from the start, everything else by `tazpod trust` or on being asked.  The approval lies
# outside the project (see `project_state`), and what is compared is what is used: the file is read once.

# Defaults of earlier versions: whoever approved one has approved what is the default now.
FORMER_DEFAULTS = {"identity": [".pi", ".omp", ".gemini", ".claude", ".codex", ".opencode"]}
# These change nothing but how much an open vault may hold, and when it is saved.
NEEDS_NO_APPROVAL = ("vault.size", "vault.autolock", "sync.interval", "sync.push_on_exit")


class Approval(NamedTuple):
    """What this host keeps of one project: what its person has approved, and which text that was."""

    settings: Mapping[str, Any] = {}
    text: str = ""  # the digest of that config.yaml
    tool: Sequence[int] = ()  # the tool that read it
    aws_named: bool = False
    places: Mapping[str, Any] | None = None  # where the words that are not kept stand in that text
    dockerfile: str = ""  # the digest of its Dockerfile
    git: str = ""  # the folder of a repository, of which the project is a worktree
    owner: int | None = None  # whom the project belongs to, where root has approved it


class Change(NamedTuple):
    """A setting that differs from what was approved, with both values as text."""

    name: str
    old: str
    new: str


class Request(NamedTuple):
    """What a project asks for, all from one reading of its config.yaml."""

    config: Config
    text: str
    warnings: Sequence[str]
    changes: Sequence[Change]  # in which it differs from what was approved
    kept: bool  # whether the approval is of this very text, as this tool reads it


def digest_of(data: bytes) -> str:
    """What is kept instead of a text or a value, to know it again."""
    try:  # the same function, without the 3 ms in which hashlib loads OpenSSL before the prompt
        from _blake2 import blake2b
    except ImportError:
        from hashlib import blake2b
    return blake2b(data, digest_size=32).hexdigest()


def _digest_of_value(value: str) -> str:
    return f"(a value with the digest {digest_of(os.fsencode(value))})"


def _without_values(words: Sequence[str]) -> list[str]:
    """Words for docker-run(1), with a digest for what may be the value of a variable: docker takes it in
    many forms, so that is whatever stands behind the first `=` of a word that is no long option, and of
    one that follows -e or --env."""
    hidden = []
    for before, word in zip(("", *words), words):
        form = r"((?:--env=|(?!--))-?[^=]+=)(.+)"
        if re.fullmatch("-[A-Za-z]*e|--env", before):
            form = "([^=]*=)(.+)"
        found = re.fullmatch(form, word, re.DOTALL)
        if found:
            hidden.append(found[1] + _digest_of_value(found[2]))
        else:
            hidden.append(word)
    return hidden


def settings_of(config: Config) -> dict[str, Any]:
    """Every setting as an approval keeps it: in the types of JSON, and no value of a variable."""
    settings: dict[str, Any] = {}
    for name, key in KEYS.items():
        value = getattr(config, key.field)
        if key.kind is dict:
            value = dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        settings[name] = value
    settings["docker.args"] = _without_values(config.docker_args)
    for name, text in config.env:
        if text is not None:
            settings["env"][name] = _digest_of_value(text)
    return settings


def changes_between(config: Config, approved: Mapping[str, Any]) -> list[Change]:
    """In what a config differs from the approved settings.  One that they do not know had its default."""
    project = config.project
    defaults = settings_of(Config(project, legal_name(project.name)))
    changes = []
    for name, value in settings_of(config).items():
        old = approved.get(name, defaults[name])
        if value == old or name in NEEDS_NO_APPROVAL:
            continue
        if value == defaults[name] and old == FORMER_DEFAULTS.get(name):
            continue
        new = getattr(config, KEYS[name].field)
        if KEYS[name].kind is dict:
            new = dict(new)
        shown = with_spaces(json.dumps(new))  # shown whole, so not `brief`
        if name.startswith("build.") and not _is_below(os.path.normpath(project / new), str(project)):
            shown += " (outside the project)"
        changes.append(Change(name, json.dumps(old), shown))
    return changes


def naming_changes(config: Config, approval: Approval) -> list[Change]:
    """Whether a config names a storage, to which the vault then goes, and what was approved does not, or the
    other way round, though all values are the same: a default counts as named where it is written.
    """
    named = approval.aws_named
    for name, default in settings_of(Config(config.project, "")).items():
        if name.startswith("aws_sso.") and approval.settings.get(name, default) != default:
            named = True
    if config.aws_named == named:
        return []
    if named:
        bucket = approval.settings.get("aws_sso.bucket", "")
        return [Change("aws_sso", f"names {json.dumps(bucket)}", "names no storage")]
    return [Change("aws_sso", "names no storage", f"names {json.dumps(config.aws_bucket)}")]


def _is_below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _places(value: Any, text: str) -> Any:
    """Where in a text each word of a value stands; ValueError when one stands there in another form."""
    if isinstance(value, tuple):
        return [_places(item, text) for item in value]
    if value is None:
        return None
    start = text.index(value)
    return {"from": start, "to": start + len(value)}


def _taken(place: Any, text: str) -> Any:
    """The value whose words stand in these places."""
    if isinstance(place, list):
        return tuple(_taken(item, text) for item in place)
    if place is None:
        return None
    return text[place["from"] : place["to"]]


def approved_config(project: Path, approval: Approval, text: str = "") -> Config:
    """The config that was approved; with the words that are not kept when its text is given."""
    values: dict[str, Any] = {}
    for name in KEYS.keys() & approval.settings.keys():
        value = approval.settings[name]
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, dict):
            value = tuple(value.items())
        values[KEYS[name].field] = value
    for field in ("env", "docker_args"):
        values[field] = ()
        if text and approval.places:
            values[field] = _taken(approval.places[field], text)
    return Config(project, **values, aws_named=approval.aws_named)


APPROVAL_RECORD = "approved.json"


def read_approval(project: Path) -> Approval | None:
    """What was approved for a project, or None."""
    kept = read_record(project, APPROVAL_RECORD)
    with contextlib.suppress(TypeError):  # it has other fields than ours
        if isinstance(kept.get("settings"), dict):
            return Approval(**kept)
    return None


def write_approval(project: Path, approval: Approval) -> None:
    """Keep what was approved for a project."""
    write_record(project, APPROVAL_RECORD, approval._asdict())
    older = state_folder() / "configs"  # version 0.5.0 kept whole configs there, values of `env` too
    if older.is_dir():
        for path in older.iterdir():
            remove_file(path)
        remove_folder(older)


def read_request(project: Path, owners: Collection[int] = ()) -> Request:
    """What the project asks for now.  A text that was read before needs no YAML, whose loading is slow."""
    text = config_text(project, owners)
    approval = read_approval(project) or Approval()
    known = approval.text == digest_of(text.encode()) and tuple(approval.tool) == tool_stamp()
    if known and approval.places:
        return Request(approved_config(project, approval, text), text, [], [], known)
    config, warnings = parse_config(text, project)
    changes = changes_between(config, approval.settings) + naming_changes(config, approval)
    return Request(config, text, warnings, changes, known)


def keep_request(request: Request, **more: Any) -> None:
    """Approve all that was asked for, and `more` of the approval."""
    config = request.config
    places = None
    if not request.warnings:  # those are told each time
        with contextlib.suppress(ValueError):
            places = {name: _places(getattr(config, name), request.text) for name in ("env", "docker_args")}
    approval = (read_approval(config.project) or Approval())._replace(
        settings=settings_of(config),
        text=digest_of(request.text.encode()),
        tool=tool_stamp(),
        aws_named=config.aws_named,
        places=places,
    )
    write_approval(config.project, approval._replace(**more))


def take_request(request: Request) -> Config:
    """The config of a request, with its warnings told; unless it is approved, none of our variables go in."""
    for line in request.warnings:
        warn(line)
    OPTIONS.debug = OPTIONS.debug or request.config.debug
    return for_this_host(request.config, hand_over=not request.changes)


def ask_approval(path: Path, changes: Sequence[Change]) -> None:
    """Show what a file asks for and ask for it; a no, or nobody who could be asked, is an error."""
    say(f"{path} asks for what you have not approved:")
    for change in changes:
        say(f"  {change.name}: {change.old} -> {change.new}")
    if OPTIONS.dry_run:
        return
    names = ", ".join(change.name for change in changes)  # again: a long value may hide what stands above
    if not confirm(f"Approve {names}?", in_person=True):
        raise UsageError(f"{path}: asks for what was not approved: {names}", "tazpod trust")


def approve_request(request: Request) -> Request:
    """The request with all of it approved: before, or by the person who is asked now."""
    if request.changes:
        ask_approval(request.config.project / CONFIG_PATH, request.changes)
        keep_request(request)
    elif not request.kept:
        with contextlib.suppress(OSError):  # where nothing can be kept, it is read anew each time
            keep_request(request)
    return request._replace(changes=[])


def config_to_end(project: Path, owners: Collection[int]) -> Config:
    """The config for words that save, lock and remove: what was approved last, whatever the file says now.

    Where nothing was approved, an older tazpod has made the container: only what names it is believed.
    """
    approval = read_approval(project)
    try:
        request = read_request(project, owners)
        if not request.changes:
            return take_request(request)
    except (TazpodError, OSError) as error:
        if approval is None or isinstance(error, MissingProgram):
            raise
        warn(str(error))
    warn(f"{CONFIG_PATH} is not as it was approved, so it does not count here: tazpod trust --show")
    if approval is not None:
        return for_this_host(approved_config(project, approval))
    config = request.config
    named = Config(project, config.container_name, user=config.user, ghost_mode=config.ghost_mode)
    return for_this_host(named, hand_over=False)


def owners_of(project: Path) -> set[int]:
    """The users whose files in an envelope count for whoever calls, as git's safe.directory has it.

    For root that is also the user who called sudo, and whoever's project root has approved.
    """
    owners = {os.geteuid()}
    if os.geteuid() == 0:
        caller = os.environ.get("SUDO_UID", "")
        approval = read_approval(project)
        if caller.isdecimal():
            owners.add(int(caller))
        if approval and approval.owner is not None:
            owners.add(approval.owner)
    path = project / ENVELOPE
    with contextlib.suppress(FileNotFoundError):  # a dry run of init has made none
        refuse_strangers(path, path.lstat().st_uid, owners)
    return owners


def refuse_strangers(path: Path, owner: int, owners: Collection[int]) -> None:
    """Refuse a file of another user: whoever may write it decides what is run here."""
    if owner in owners:
        return
    hint = f"if what it says is right: sudo chown -h {os.geteuid()} {quoted(str(path))}"
    if path.name == ENVELOPE:
        hint = f"tazpod init starts a project of your own in a folder that has no {ENVELOPE} yet"
    if os.geteuid() == 0:
        hint = "if it is to be yours as well: tazpod trust"
    what = f"{path}: belongs to {user_name(owner)}, and you are {user_name(os.geteuid())}"
    raise TazpodError(what, hint)


def user_name(uid: int) -> str:
    """A user's name, or the number where it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def places_on_the_way(path: str) -> list[tuple[str, bool]]:
    """Every place that a path comes to, and whether a link lies there; OSError when it never ends."""
    parts = path.split("/")
    places: list[tuple[str, bool]] = []
    links = 0
    at = "/"
    while parts:
        folder = at
        at = os.path.normpath(os.path.join(folder, parts.pop(0)))
        try:
            target = os.readlink(at)
        except OSError:  # no link, or nothing
            places.append((at, False))
            continue
        places.append((at, True))
        links += 1
        if links > 255:  # the kernel follows 40, Go's library 255
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        parts = target.split("/") + parts
        at = folder if parts[0] else "/"
    return places


def project_test(project: Path) -> Callable[[str], bool]:
    """A test for paths without links: whether one lies in a project, be it by another mount of its folder."""
    folder = os.path.realpath(project)
    table = own_mounts()
    parts = parts_of_project(project, table)

    def lies_in_it(path: str) -> bool:
        return _is_below(path, folder) or is_part(*what_lies_at(path, table), parts)

    return lies_in_it


def leads_out(project: Path, path: str) -> bool:
    """Whether a path goes through a link in the project, which the container can make, and ends outside.

    One that nobody can follow, because a link leads to itself, counts as such.
    """
    try:
        places = places_on_the_way(path)
    except OSError:
        return True
    lies_in_it = project_test(project)
    through_project = any(link and lies_in_it(os.path.dirname(place)) for place, link in places)
    return through_project and not lies_in_it(places[-1][0])


def passes_through(project: Path, path: str) -> bool:
    """Whether a path comes through the project, or ends there."""
    lies_in_it = project_test(project)
    return any(lies_in_it(place) for place, _ in places_on_the_way(path))


def refuse_to_be_led_out(project: Path, path: str, what: str) -> None:
    """UsageError for a path that `leads_out`; `what` names the setting."""
    if leads_out(project, path):
        raise UsageError(f"{what}: goes through a link that leads out of the project")


def approved_dockerfile(config: Config) -> bytes:
    """The text of the Dockerfile, approved: by coming from `init`, before, or by who is asked now."""
    project = config.project
    path = project / config.dockerfile
    context = str(project / config.context)
    refuse_to_be_led_out(project, context, f"build.context: {config.context}")
    try:
        text = read_shared(path, owners_of(project))
    except FileNotFoundError:
        raise TazpodError(f"{path}: there is no such Dockerfile", "tazpod init writes one") from None
    changes = dockerfile_changes(text, read_approval(project) or Approval(settings_of(config)))
    if changes:
        ask_approval(path, changes)
        approval = read_approval(project) or Approval(settings_of(config))  # as it is after the question
        write_approval(project, approval._replace(dockerfile=digest_of(text)))
    # Once more: while the question was asked, a program in the container may have put a link there.
    refuse_to_be_led_out(project, context, f"build.context: {config.context}")
    return text


def dockerfile_changes(text: bytes, approval: Approval) -> list[Change]:
    """In what the text of the Dockerfile differs from the approved one; `init`'s needs no approval."""
    digest = digest_of(text)
    if text == DOCKERFILE.encode() or digest == approval.dockerfile:
        return []
    return [Change("the digest of its text", approval.dockerfile or digest_of(DOCKERFILE.encode()), digest)]


# -- a project that is a git worktree
#
# Git works in one only beside the folder that all worktrees of the repository share.  The project's
# `.git` is a file that names it, and whoever writes in the project can write that file.  So the folder is
# mounted when git's own link leads back here, and its person has approved that very path.


class Worktree(NamedTuple):
    """What a git worktree has for itself in the folder of its repository: here, and in the container."""

    own: Path
    inside: Path

    @property
    def common(self) -> str:
        """The folder of the repository."""
        return str(self.own.parent.parent)


def read_git_link(path: Path, before: str = "") -> str:
    """The path on the one line of a small file of git's; `before` stands in front of it there."""
    found = re.fullmatch(f"{before}([^\0\n:\udc80-\udcff]+)\n?", os.fsdecode(read_shared(path)))
    if not found:
        raise TazpodError(f"{path}: names no folder that can be mounted")
    return found[1]


def read_worktree(project: Path, owners: Collection[int]) -> Worktree:
    """The git worktree that a project with a file `.git` is; an error for one that git would not believe."""
    link = read_git_link(project / ".git", "gitdir: ")
    home = os.path.realpath(project)
    own, inside = (os.path.normpath(os.path.join(folder, link)) for folder in (home, WORKSPACE))
    worktree = Worktree(Path(own), Path(inside))
    common = worktree.common
    what = ""
    if worktree.own.parent.name != "worktrees":
        what = f"{own}: is no worktree's"
    elif os.path.realpath(own) != own:
        what = f"{own}: a link is on the way"
    elif any(_is_below(str(place), common) for place in (home, home_folder(), state_folder())):
        what = f"{common}: holds more than a repository"
    elif passes_through(project, own):
        what = f"{common}: lies in the project"
    elif not (Path(common, "HEAD").is_file() and Path(common, "objects").is_dir()):
        what = f"{common}: is no folder of a repository"
    if what:
        raise TazpodError(what)
    refuse_strangers(Path(common), os.lstat(common).st_uid, owners)
    back = os.path.join(own, read_git_link(Path(own, "gitdir")))
    if os.path.realpath(os.path.dirname(back)) != home or os.path.basename(back) != ".git":
        raise TazpodError(f"{own}/gitdir: does not name this project (git worktree repair)")
    return worktree


def find_worktree(project: Path, owners: Collection[int]) -> Worktree | None:
    """The git worktree that a project is; None when it is none, or not to be believed, which is told."""
    path = project / ".git"
    if path.is_symlink() or not path.is_file():
        return None
    try:
        return read_worktree(project, owners)
    except (TazpodError, OSError) as error:
        warn(f"git does not work in the container: the link in {path} is not followed: {error}")
        return None


def approved_git(project: Path) -> str:
    """The folder of a repository that was approved for a project; '' for none."""
    return (read_approval(project) or Approval()).git


def approved_worktree(config: Config) -> Worktree | None:
    """The git worktree that a project is, its folder approved: before, or by who is asked now."""
    project = config.project
    worktree = find_worktree(project, owners_of(project))
    if worktree is None or worktree.common == approved_git(project):
        return worktree
    if confirm(f"Mount {worktree.common}, by which git works in this worktree?", in_person=True):
        approval = read_approval(project) or Approval(settings_of(config))
        write_approval(project, approval._replace(git=worktree.common))
        return worktree
    way = "tazpod trust, then tazpod up --recreate"
    warn(f"git does not work in the container: {worktree.common} was not approved: {way}")
    return None


# -- mount tables


class Mount(NamedTuple):
    """One line of a mount table: where what of which file system is mounted."""

    device: str
    point: str
    kind: str
    root: str = "/"
    source: str = ""  # what was named when it was mounted
    options: str = ""  # of the file system, wherever it is mounted
    shared: bool = False  # whether what is mounted below it comes to others as well (mount_namespaces(7))

    @property
    def number(self) -> int:
        """The device as stat(2) tells it."""
        return os.makedev(*map(int, self.device.split(":")))


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts of /proc/<pid>/mountinfo (proc(5)), in order; later ones cover earlier ones."""
    mounts = []
    for line in text.split("\n"):  # the only character of all that end a line which is never in a path there
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        kind, _, rest = right.partition(" ")
        if len(fields) >= 5:
            root, point = map(_unescaped, fields[3:5])
            source, _, options = rest.partition(" ")
            shared = any(field.startswith("shared:") for field in fields[6:])
            mounts.append(Mount(fields[2], point, kind, root, source, options, shared))
    return mounts


def _unescaped(field: str) -> str:
    """A path of a mount table, in which a space is written as \\040."""
    if "\\" not in field:
        return field
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def own_mounts(proc: str = "/proc") -> list[Mount]:
    """The mounts that this process sees; nothing on a system that does not tell, such as macOS."""
    with contextlib.suppress(FileNotFoundError), open(f"{proc}/self/mountinfo", "rb") as file:
        return parse_mountinfo(os.fsdecode(file.read()))
    return []


def what_lies_at(path: str, table: Sequence[Mount]) -> tuple[str, str]:
    """The device that a path without links comes to, and the path on it; a table that is empty tells '', ''.

    A mount that another one covers is told by the device of what is there.
    """
    device = ""
    with contextlib.suppress(OSError):
        found = os.stat(path).st_dev
        device = f"{os.major(found)}:{os.minor(found)}"
    around = [mount for mount in table if _is_below(path, mount.point)]
    around.sort(key=lambda mount: (mount.device == device, len(mount.point)))
    if not around:
        return "", ""
    last = around[-1]
    return last.device, os.path.normpath(os.path.join(last.root, os.path.relpath(path, last.point)))


def parts_of_project(project: Path, table: Sequence[Mount]) -> list[tuple[str, str]]:
    """What lies at a project's folder, and what is mounted below it: devices, and paths on them."""
    if not table:
        return []
    folder = os.path.realpath(project)
    below = [(mount.device, mount.root) for mount in table if _is_below(mount.point, folder)]
    return [what_lies_at(folder, table), *below]


def is_part(device: str, root: str, parts: Iterable[tuple[str, str]]) -> bool:
    """Whether what lies on a device at a path belongs to one of some parts."""
    return any(device == other and _is_below(root, top) for other, top in parts)


# ── 5. container ──────────────────────────────────────────────────────────────────────────


def refuse_links(config: Config) -> None:
    """No folder that we write to may be a link: the container could lead us to any place of the host."""
    envelope = config.project / ENVELOPE
    for path in (envelope, envelope / "vault", config.run_folder):
        if path.is_symlink():
            raise TazpodError(f"{path}: is a link, not a folder", "see where it leads, then remove it")


class Engine(NamedTuple):
    """What one engine must be told otherwise than the other.

    All that they answer is read in a way that is right for both.
    """

    title: str
    address: str  # the variable that says where it is
    mtu_option: str  # of a network
    keys: tuple[str, ...]  # of exec on a terminal: nothing that is typed detaches it
    copy: tuple[str, ...]  # of cp: what is copied stays root's


ENGINES = {
    # The keys of Docker stand in a file: see `docker_settings`.
    "docker": Engine("the Docker engine", "DOCKER_HOST", "com.docker.network.driver.mtu", (), ()),
    "podman": Engine("Podman", "CONTAINER_HOST", "mtu", ("--detach-keys=",), ("-a=false",)),
}
# Set for a Podman on another machine, or of another user.
ELSEWHERE = ("CONTAINER_HOST", "CONTAINER_CONNECTION")


def is_rootless(config: Config) -> bool:
    """Whether the engine is a Podman without root.  One that is not this user's own must be asked."""
    if config.program != "podman":
        return False
    if sys.platform == "linux" and not any(map(os.environ.get, ELSEWHERE)):
        return os.geteuid() != 0
    answer = capture(["podman", "info", "--format", "{{.Host.Security.Rootless}}"])
    if answer.code != 0:
        raise engine_error(answer)
    return answer.out.strip() == b"true"


def podman_options(config: Config, selinux: str = "/sys/fs/selinux/enforce") -> Iterator[str]:
    """What podman-run(1) needs besides.

    Without root the operator would be uid 0 inside; with keep-id the ids are those of the host.  Where
    SELinux enforces, a container reads no file of the host.  To give ~/.ssh a label of containers
    (`:Z`) would shut out the host's own sshd, so the separation by labels is switched off.
    """
    if config.program != "podman":
        return
    if is_rootless(config) and not any(word.startswith("--userns") for word in config.docker_args):
        yield "--userns=keep-id"
    with contextlib.suppress(OSError), open(selinux, "rb") as file:
        if file.read(1) == b"1":
            yield from ("--security-opt", "label=disable")


def full_name(config: Config) -> str:
    """The image as it is pulled and built: Podman takes no registry for granted."""
    first, slash, _ = config.image.partition("/")
    if config.program == "docker" or (slash and re.search("[.:]|^localhost$", first)):
        return config.image
    return f"docker.io/{config.image}"


def inspect_argv(config: Config) -> list[str]:
    """docker-inspect(1) of the container and of the image that the config names."""
    return [config.program, "inspect", config.container_name, config.image]


def run_argv(config: Config, home: Path, mtu: int | None = None) -> list[str]:
    """docker-run(1) of a new container (docs/contract.md has this argv, in this order).

    What the config asks for besides comes before the image; proxies go by name, their value may be secret.
    """
    project = str(config.project)
    for word in config.docker_args:
        for piece in re.split("[=,:]", word):  # --mount=type=bind,source=/srv/x
            if "/" in piece:
                refuse_to_be_led_out(config.project, os.path.abspath(piece), f"docker.args: {word}")
                if "volume-opt" in word and passes_through(config.project, piece):
                    raise UsageError(f"docker.args: {word}: no volume can lie in the project", "use mounts")
    return [
        *(config.program, "run", "-d", "--name", config.container_name),
        # For the tmpfs and the bind mounts inside, and nothing else.
        *("--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"),
        *_named("--dns", config.dns),
        *("-v", f"{project}:{WORKSPACE}", "-v", f"{home}/.ssh:{config.home}/.ssh:ro"),
        *("-e", f"HOST_CWD={project}"),
        *(("--network", network_name(mtu)) if mtu else ()),
        *podman_options(config),
        *_named("-e", config.proxies),
        *_named("-e", (name if value is None else f"{name}={value}" for name, value in config.env)),
        *_named("-p", config.ports),
        *_named("-v", (mount_word(config, mount) for mount in config.mounts)),
        *_named("-v", config.git_mounts),
        *config.docker_args,
        *(config.image, "sleep", "infinity"),
    ]


def _named(flag: str, values: Iterable[str]) -> Iterator[str]:
    for value in values:
        yield from (flag, value)


def mount_word(config: Config, mount: str) -> str:
    """One of `mounts` as docker-run(1) takes it; UsageError where it would do harm."""
    source, target, *options = mount.split(":")
    source = host_path(config, source)
    if "/" in source:
        refuse_to_be_led_out(config.project, source, f"mounts: {source}")
    if "/" in source and not os.path.exists(source):  # Docker would make a folder of root's
        raise UsageError(f"mounts: {source}: there is no such file or folder", "make it first")
    own = [f"{config.home}/{name}" for name in ("secrets", TRANSIT, ".aws", ".ssh")]
    for place in (WORKSPACE, *own, POD_TOOL):
        inside, around = (f"{os.path.normpath(path)}/" for path in (place, target))
        if inside.startswith(around) or (place != WORKSPACE and around.startswith(inside)):
            raise UsageError(f"mounts: {target}: that place is taken by {place}", "choose another target")
    return ":".join((source, target, *options))


def write_link_back(config: Config) -> Path:
    """The file by which git in the container knows where a worktree is."""
    link = config.run_folder / "gitdir"
    write_whole(link, f"{WORKSPACE}/.git\n".encode())
    return link


def with_git_mounts(config: Config) -> Config:
    """The config with what makes git work in the container of a git worktree.

    In there no other worktree is to be seen, so `git worktree prune` would take what the host has of
    them for left over: that is read-only.  And of this one it says that it is at the workspace.
    """
    worktree = approved_worktree(config)
    if worktree is None:
        return config
    own, inside = worktree
    mounts = (
        mount_word(config, f"{worktree.common}:{inside.parent.parent}"),
        f"{own.parent}:{inside.parent}:ro",
        f"{own}:{inside}",
        f"{write_link_back(config)}:{inside}/gitdir",
    )
    return config._replace(git_mounts=mounts)


def network_name(mtu: int) -> str:
    """The Docker network for containers with that MTU; all projects share it."""
    return f"tazpod-mtu-{mtu}"


def network_argv(config: Config, mtu: int) -> list[str]:
    """docker-network-create(1): Docker's own bridge keeps 1500, and TLS hangs behind a narrower route."""
    setting = f"{ENGINES[config.program].mtu_option}={mtu}"
    return [config.program, "network", "create", "--opt", setting, network_name(mtu)]


def create_network(config: Config, mtu: int) -> None:
    """Make that network, unless somebody was faster: of one name, an engine keeps one."""
    result = act(network_argv(config, mtu))
    if result.code != 0 and "already exists" not in result.err:
        raise engine_error(result)


def engine_address() -> str:
    """Where docker reaches its engine, in docker's own order: DOCKER_HOST, or what the context says.

    Nothing for the usual socket of this machine.
    """
    given = os.environ.get("DOCKER_HOST")
    if given:
        return given
    name = os.environ.get("DOCKER_CONTEXT")
    folder = Path(os.environ.get("DOCKER_CONFIG") or home_folder() / ".docker")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        name = name or json.loads((folder / "config.json").read_bytes()).get("currentContext")
    if name in (None, "", "default"):
        return ""
    for path in folder.glob("contexts/meta/*/meta.json"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            context = json.loads(path.read_bytes())
            if context["Name"] == name:
                return str(context["Endpoints"]["docker"]["Host"])
    return "unknown:"


def engine_host() -> str:
    """What leads ssh to the engine's machine; '' for this one, or one that is not known."""
    found = re.match(r"(ssh|tcp|https?)://([A-Za-z0-9_][A-Za-z0-9._@-]*)(?::([0-9]+))?", engine_address())
    if found is None:
        return ""
    way, host, port = found.groups()
    if way == "ssh" and port:
        return f"-p {port} {host}"
    return str(host)


def route_mtu() -> int | None:
    """The MTU of this host's route to the internet, by IP_MTU of ip(7); None where it cannot be told.

    Nothing is sent.  An engine on another machine has routes of its own.
    """
    import socket

    if sys.platform != "linux" or not re.match("unix://|$", engine_address()):
        return None
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("1.1.1.1", 53))
        return probe.getsockopt(socket.IPPROTO_IP, 14)  # IP_MTU, for which Python has no name
    return None


def wanted_mtu(config: Config) -> int | None:
    """The MTU that the container's network must have; None: Docker's own network will do."""
    if any(re.match("--net(work)?(=|$)", word) for word in config.docker_args):
        return None  # whoever names a network has chosen
    if config.mtu != "auto":
        if config.mtu == "off":
            return None
        return int(config.mtu)
    if config.program == "podman" and (os.geteuid() != 0 or any(map(os.environ.get, ELSEWHERE))):
        return None  # without root the network is a program here, which takes packets of any size
    mtu = route_mtu()
    if mtu is None or mtu >= ETHERNET_MTU:
        return None
    return mtu


def _exec_options(config: Config, how: str) -> list[str]:
    words = [config.program, "exec", how]
    if "t" in how:
        words += ENGINES[config.program].keys
    if config.user != DEFAULT_USER:
        words += ["-u", config.user]
    return words


def _attached(terminal: bool) -> str:
    """The option of docker-exec(1) for a program that talks to us, on our terminal or off it."""
    if terminal:
        return "-it"
    return "-i"


def shell_argv(config: Config, terminal: bool = True, folder: str = WORKSPACE) -> list[str]:
    """docker-exec(1) of the shell; without a terminal it reads its standard input.

    Any but bash is started by bash, which claims the session for it.
    """
    bash = [*_exec_options(config, _attached(terminal)), *("-w", folder, config.container_name, "/bin/bash")]
    if config.shell == DEFAULT_SHELL:
        return bash
    return [*bash, "-c", f"TAZPOD_CLAIM=1 . {POD_TOOL}/bashrc; exec {shlex.quote(config.shell)}"]


def exec_argv(
    config: Config, words: Sequence[str], terminal: bool = True, folder: str = WORKSPACE, claim: str = ""
) -> list[str]:
    """docker-exec(1) of a command for the operator inside.

    Docker passes on nothing but UTF-8: any other byte, which shlex has quoted, goes as bash's $'..'.
    """
    text = re.sub("[\udc80-\udcff]", lambda byte: f"'$'\\x{ord(byte[0]) & 255:02x}''", shlex.join(words))
    return exec_line_argv(config, text, terminal, folder, claim)


def exec_line_argv(
    config: Config, line: str, terminal: bool = True, folder: str = WORKSPACE, claim: str = ""
) -> list[str]:
    """docker-exec(1) of a line for the operator's shell, which may claim a session by a file."""
    shell: tuple[str, ...] = ("bash", "-lc")
    if claim:
        shell = ("bash", "-c", CLAIM, claim)
    return [
        *_exec_options(config, _attached(terminal)),
        *("-e", f"AWS_CONFIG_FILE={POD_AWS_CONFIG}"),
        *_named("-e", config.aws_variables),
        *("-w", folder, config.container_name),
        *shell,
        line,
    ]


def is_open_argv(config: Config) -> list[str]:
    """docker-exec(1) that tells by its status whether the vault is open."""
    if config.program == "docker":
        return ["docker", "exec", config.container_name, "mountpoint", "-q", config.secrets]
    # Among what Podman says by the way, only an answer that is said is known as one.
    return ["podman", "exec", "-e", "LC_ALL=C", config.container_name, "mountpoint", config.secrets]


def guard_argv(config: Config) -> list[str]:
    """docker-exec(1) of the background guard, detached."""
    names = _named("-e", config.aws_variables)
    return [*_exec_options(config, "-d"), *names, config.container_name, POD_LAUNCHER, GUARD_WORD]


def build_argv(config: Config) -> list[str]:
    """docker-build(1), to be run in the project folder; the Dockerfile is its standard input."""
    proxies = _named("--build-arg", config.proxies)
    return [config.program, "build", "-t", full_name(config), "-f", "-", *proxies, config.context]


# The states of a container that can be started; the last two are Podman's.
IDLE_STATES = ("created", "exited", "stopped", "initialized")


class Container(NamedTuple):
    """What docker says of a container."""

    id: str
    status: str
    image: str
    project: str | None  # the folder that is mounted at /workspace
    image_id: str = ""
    networks: tuple[str, ...] = ()
    pid: int = 0  # the number outside of its first process
    engine: str = ""
    name: str = ""
    user: str = ""  # into whose home ~/.ssh is mounted
    binds: tuple[tuple[str, str], ...] = ()  # folders and files of the host, and where they are mounted
    ports: tuple[str, ...] = ()  # what the host sees of it now
    ours: bool = True  # whether a TazPod made it, as far as docker knows
    init: bool = False  # whether it has an init of the engine's

    @property
    def running(self) -> bool:
        """Whether a command can be run in it."""
        return self.status == "running"

    @property
    def in_memory(self) -> bool:
        """Whether it may hold an open vault: pausing keeps it."""
        return self.status in ("running", "paused")


def container_of(data: Mapping[str, Any]) -> Container:
    """What docker says of one container, as far as it matters here."""
    try:
        mounts = {mount["Destination"]: mount.get("Source", "") for mount in data.get("Mounts") or []}
        binds = [(source, place) for place, source in mounts.items() if place != WORKSPACE]
        networks = (data.get("NetworkSettings") or {}).get("Networks") or ()
        project = workspace_source(mounts)
        variables = data["Config"].get("Env") or []
        named = any(variable.startswith("HOST_CWD=") for variable in variables)  # by every TazPod
        return Container(
            id=data["Id"],
            status=data["State"]["Status"],
            image=data["Config"].get("Image", ""),
            project=project,
            image_id=data.get("Image", ""),
            networks=tuple(networks),
            pid=int(data["State"].get("Pid") or 0),
            name=data["Name"].lstrip("/"),
            user=user_by_mounts(mounts),
            binds=tuple(binds),
            ports=published_ports((data.get("NetworkSettings") or {}).get("Ports") or {}),
            ours=bool(project) and named,
            init=bool((data.get("HostConfig") or {}).get("Init")),
        )
    except (LookupError, TypeError, AttributeError):
        raise TazpodError("the engine gave an answer that makes no sense to inspect") from None


def published_ports(ports: Mapping[str, Any]) -> tuple[str, ...]:
    """The ports that the host sees, as HOST->CONTAINER; of every address of the host without one."""
    found = {}
    for inside, places in ports.items():
        for place in places or ():
            address = str(place.get("HostIp") or "")
            if ":" in address:
                address = f"[{address}]"
            outside = f"{address}:{place['HostPort']}"
            if address in ("", "0.0.0.0", "[::]"):
                outside = str(place["HostPort"])
            found[f"{outside}->{inside}"] = True
    return tuple(found)


def workspace_source(mounts: Mapping[str, str]) -> str | None:
    """The folder that a container has as its workspace.

    Only the mount tells: the variable HOST_CWD can be set by docker.args.
    """
    source = mounts.get(WORKSPACE)
    if source is None:
        return None
    return re.sub("^/host_mnt/", "/", source)  # as Docker Desktop calls the folders of its host


def user_by_mounts(mounts: Mapping[str, str]) -> str:
    """The user into whose home ~/.ssh is mounted; '' where that does not tell one."""
    users = []
    for place in mounts:
        found = re.fullmatch("/home/([^/]+)/[.]ssh", place)
        if found and re.fullmatch(USER_NAME, found[1]):
            users.append(found[1])
    if len(users) != 1:
        return ""
    return users[0]


# -- what a container has mounted


def seen_mounts(container: Container, proc: str = "/proc") -> list[Mount]:
    """The mounts in a container, as far as this very machine shows them: that spares a docker-exec.

    Only what is there is an answer.  The engine may be another machine's, whose numbers of processes
    mean nothing here; so the process must be that container's, and all is read of one process, however
    fast its number is given to another.
    """
    with contextlib.suppress(OSError, ValueError, LookupError):
        texts = {}
        with closing(os.open(f"{proc}/{container.pid}", _FOLDER)) as folder:
            for name in ("cgroup", "stat", "mountinfo"):
                with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder), "rb") as file:
                    texts[name] = os.fsdecode(file.read())
        if is_grouped(container, texts["cgroup"]) or is_started_for(container, texts["stat"], proc):
            return parse_mountinfo(texts["mountinfo"])
    return []


def is_grouped(container: Container, groups: str) -> bool:
    """Whether these are the control groups of a container (cgroups(7))."""
    names = {line.removesuffix("/container").rpartition("/")[2] for line in groups.split("\n")}
    podman = f"libpod-{container.id}"
    return bool(names & {container.id, f"docker-{container.id}.scope", podman, f"{podman}.scope"})


def is_started_for(container: Container, status: str, proc: str) -> bool:
    """Whether the parent of a process is what the engine has started for that container.

    Root in a container may move its processes to other control groups, but not to another parent.
    """
    parent = status.rpartition(")")[2].split()[1]
    with open(f"{proc}/{parent}/cmdline", "rb") as file:
        return container.id.encode() in file.read().split(b"\0")


# -- what a container was made with
#
# config.yaml may be edited, or another branch checked out, while a container is there and a vault open
# in it.  So what the container was made with is kept where nothing in it can write (`project_state`),
# by the id that docker gave it; what docker itself knows counts where that is lost.

CONTAINERS_RECORD = "containers.json"
RECORD_LIMIT = 8  # containers of one project: more than one only on several engines


def read_records(project: Path) -> dict[str, dict[str, Any]]:
    """What this host remembers of the containers of a project, by id."""
    records = read_record(project, CONTAINERS_RECORD).get("containers")
    if not isinstance(records, dict):
        return {}
    return records


def write_records(project: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep what is known of the containers of a project, the newest of them."""
    newest = dict(list(records.items())[-RECORD_LIMIT:])
    write_record(project, CONTAINERS_RECORD, {"containers": newest})


def remember_container(config: Config, container: Container, **more: Any) -> None:
    """Remember what a container was made with, and `more` of it."""
    records = read_records(config.project)
    known = records.pop(container.id, {})
    made = {"user": config.user, "ghost_mode": config.ghost_mode}
    write_records(config.project, {**records, container.id: {**made, **known, **more}})


def forget_container(config: Config, container: Container) -> None:
    """Forget a container that is removed."""
    records = read_records(config.project)
    if records.pop(container.id, None):
        write_records(config.project, records)


def config_of(config: Config, container: Container) -> Config:
    """The config with which to work on a container: its name and its vault are as it was made."""
    known = read_records(config.project).get(container.id, {})
    return config._replace(
        container_name=container.name,
        user=known.get("user") or container.user or config.user,
        ghost_mode=known.get("ghost_mode", config.ghost_mode),
    )


def engine_error(result: Result) -> TazpodError:
    """The error for a call of docker or podman that failed: an engine out of reach is told apart."""
    name = result.program or "docker"
    engine = ENGINES[name]
    lines = result.err.lower().splitlines()
    if any(re.search("permission denied.*connect to|connect: permission denied", line) for line in lines):
        hint = "sudo usermod -aG docker $USER, then log in again; or use a rootless engine"
        return TazpodError(f"{engine.title} refuses this user", hint)
    for sign in ("cannot connect", "error during connect", "is the docker daemon running"):
        if any(sign in line for line in lines):
            hint = f"start it, or check {engine.address}; `{name} info` shows more"
            return TazpodError(f"{engine.title} cannot be reached", hint)
    reason = result.reason.removeprefix(f"{name}: ")
    return TazpodError(f"{name}: {reason}")


def docker(argv: Sequence[str]) -> Result:
    """A call of docker or podman that changes something, and must succeed."""
    result = act(argv)
    if result.code != 0:
        raise engine_error(result)
    return result


def parse_inspect(config: Config, result: Result) -> tuple[Container | None, str]:
    """What `docker inspect` says of the container, None for none, and the image's id, '' for none here."""
    missing = re.findall('no such object: "?([^"\n]*)', result.err.lower())
    if result.code != 0 and not missing:
        raise engine_error(result)
    container = None
    image = ""
    others = 0  # an image, a volume, a network, which may have the container's name
    try:
        for item in json.loads(result.out):
            if isinstance(item.get("State"), dict):
                container = container or container_of(item)
                continue
            others += 1
            if "RootFS" in item:
                image = item["Id"]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise TazpodError("the engine gave an answer that makes no sense to inspect") from None
    if config.image.lower() in missing:
        image = ""
    if container is None and config.container_name.lower() not in missing and others + len(missing) < 2:
        raise TazpodError("the engine gave an answer that makes no sense to inspect")
    return container, image


class Found(NamedTuple):
    """The container of a project, None for none, and the id of the config's image, '' when it is not here.

    `config` is the one with which to work on it, see `config_of`; without a container, the one of now.
    """

    config: Config
    container: Container | None
    image: str


def look_for_container(config: Config, *, new: bool = False) -> Found:
    """What is there of a project as it is now: usually in one call of docker.  A `new` one is proven later.

    A container of this project under another name is found too: the config may have been edited.  One
    that belongs to another folder is an error: never entered, never removed.
    """
    if OPTIONS.pod:
        config = config._replace(container_name=OPTIONS.pod)
    container, image = parse_inspect(config, capture(inspect_argv(config)))
    if config.container_name in OPTIONS.containers:
        container = OPTIONS.containers[config.container_name]
    elif container is None or not belongs_to(container, config.project):
        container = container_by_mount(config, container)
    if container is None:
        refuse_other_engine(config)
        refuse_hidden_container(config)
        return Found(config, None, image)
    container = as_it_is(config, container)
    if container.running and not new:
        refuse_another_folder(config, container)
    return Found(config_of(config, container), container, image)


def as_it_is(config: Config, container: Container) -> Container:
    """The container, stopped where Podman calls it running and cannot run anything in it.

    So it goes on when conmon, who would have told Podman of its end, was killed as well.  Asked only where
    the process that it names is not seen to be the container's, which alone proves nothing: Podman may be
    on another machine.
    """
    if config.program != "podman" or not container.running or seen_mounts(container):
        return container
    if is_alive(config.run_folder / GUARD_LOCK):  # by its guard
        return container
    # In the background: else what a program of the container's prints would be taken for Podman's words.
    answer = capture([config.program, "exec", "-d", container.name, "true"])
    if answer.code != 0 and re.search(
        "cannot exec in a stopped container|executing setns process", answer.err
    ):
        return container._replace(status="exited", pid=0)
    return container


def refuse_hidden_container(config: Config) -> None:
    """An error where no container was found and yet the guard of one is at work in this very folder.

    It is on another engine of the same kind (DOCKER_HOST, a docker context), or knows the folder under
    another path, since the folder was moved.  Its vault may be open, so nothing is said of it.
    """
    held = config.run_folder / GUARD_LOCK
    if OPTIONS.containers or not held.exists():  # a dry run that has shown how it is removed
        return
    for _ in range(ATTEMPTS):  # the guard of a container that was just removed ends with it
        if not is_alive(held):
            return
        time.sleep(0.2)
    raise TazpodError(
        f"a container of this project is at work in {config.project}, and {config.program} does not show it",
        "is DOCKER_HOST or the docker context another one than when it was made, or was the folder moved?",
    )


def container_by_mount(config: Config, named: Container | None) -> Container | None:
    """The container of a project that has another name than the config says; None for none.

    `named` is the one that has this name, and belongs to another folder.
    """
    others = other_containers(config)
    if len(others) > 1:
        names = ", ".join(other.name for other in others)
        hint = f"say which one is meant by container_name in {CONFIG_PATH}"
        raise TazpodError(f"several containers belong to this project: {names}", hint)
    if others:
        return others[0]
    if named:
        refuse_moved(config, named)
        owner = named.project or "no TazPod project"
        raise TazpodError(
            f"the container {config.container_name} belongs to {owner}, not to {config.project}",
            f"give this project another container_name in {CONFIG_PATH}",
        )
    return None


def workspace_place(container: Container) -> tuple[str, str]:
    """The device and the path on it that a running container has as its workspace; '', '' where none is seen.

    A folder may be moved, and another one put in its place: this is the one that is mounted.
    """
    for mount in seen_mounts(container):
        if mount.point == str(WORKSPACE):
            return mount.device, mount.root
    return "", ""


def refuse_another_folder(config: Config, container: Container) -> None:
    """An error for a running container whose workspace is not the folder that has this path now."""
    device, root = workspace_place(container)
    if not device:
        return
    place = what_lies_at(os.path.realpath(config.project), own_mounts())
    if place[0] != device:
        raise not_shared(config)
    if root.endswith("//deleted"):  # so the kernel calls what has no name any more
        what = f"the folder that {container.name} works in was deleted, and {config.project} is another one"
        look = quoted(config.program, "exec", "-it", "-w", "/", container.name, "bash")
        end = f"{config.program} rm -f {container.name}"
        raise TazpodError(
            what, f"an open vault lies in its memory alone: {look} to copy what you need; then {end}"
        )
    if place[1] != root:
        what = f"{config.project} is not the folder that {container.name} works in: that one was moved"
        raise TazpodError(what, way_out_of_moved(config.program, container))


def not_shared(config: Config) -> TazpodError:
    """The error for a container that has another folder in the place of the project."""
    there = engine_host() or "HOST"
    command = f"cd {shlex.quote(str(config.project))} && tazpod"
    return TazpodError(
        f"the engine's machine does not see {config.project}: the container would have another folder",
        f"work on that machine: ssh -t {there} {shlex.quote(command)}",
    )


def refuse_moved(config: Config, container: Container) -> None:
    """The error for a container whose project is not where it was: most likely its folder was moved."""
    place = workspace_place(container)
    is_here = place == what_lies_at(os.path.realpath(config.project), own_mounts())
    is_here = is_here and place != ("", "") and container.project != str(config.project)
    if container.project is None or (os.path.lexists(container.project) and not is_here):
        return
    what = f"the project of {container.name} is gone: {container.project}"
    way = way_out_of_moved(config.program, container)
    if is_here:
        what = f"this is the project of {container.name}, which was made at {container.project}"
    with contextlib.suppress(OSError):
        if os.path.samefile(container.project, config.project):  # it is mounted twice
            way = f"cd {quoted(container.project)}, and again"
    raise TazpodError(what, way)


def way_out_of_moved(engine: str, container: Container) -> str:
    """How to end a container whose project was moved: a mount follows a folder, so it can still save."""
    hint = f"{engine} rm -f {container.name}"
    if container.in_memory:
        inside = quoted(engine, "exec", "-u", container.user or "tazpod", container.name)
        hint = f"{inside} tazpod lock, then {hint}"
    return f"if it was moved: {hint}"


def belongs_to(container: Container, project: Path) -> bool:
    """Whether a container has this project as its workspace."""
    return os.path.realpath(container.project or "/") == os.path.realpath(project)  # Go kept links


def other_containers(config: Config) -> list[Container]:
    """The containers of this project that have another name than the config says."""
    found = []
    for name, container in pods_of(config.program).items():
        gone = OPTIONS.containers.get(name, container) is None  # by what a dry run has shown
        if name != config.container_name and belongs_to(container, config.project) and not gone:
            found.append(container)
    return found


def way_to_end(config: Config, other: Container, word: str) -> str:
    """How to end another container of the project: --pod knows only what was made from this host."""
    if other.id in read_records(config.project):
        return f"tazpod --pod {other.name} {word}"
    return f"if {other.name} is not needed: {config.program} rm -f {other.name}"


def pretend(config: Config, container: Container | None) -> None:
    """In a dry run: the container as it would be by now, for all that comes after."""
    if OPTIONS.dry_run:
        OPTIONS.containers[config.container_name] = container


def refuse_other_engine(config: Config) -> None:
    """There is no container here: it must not be on the other engine either, with an open vault perhaps."""
    other = remembered_engine(config.project)
    if other in ("", config.program) or not on_path(other):
        return
    try:
        found = other_containers(config._replace(program=other, container_name=""))
    except TazpodError as error:
        warn(f"whether this project has a container on {ENGINES[other].title} cannot be told: {error}")
        return
    if found:
        titles = f"on {ENGINES[other].title}, not on {ENGINES[config.program].title}"
        what = f"the container {found[0].name} is {titles}"
        raise TazpodError(what, f"TAZPOD_ENGINE={other} tazpod down, or go on with that engine")


def find_container(config: Config) -> Container | None:
    """The container of the project, None when there is none; errors as `look_for_container`."""
    return look_for_container(config).container


def engines_here() -> list[str]:
    """The engines that this host may have containers on."""
    choice = os.environ.get("TAZPOD_ENGINE")
    if choice in ENGINES:
        return [choice]
    found = [name for name in ENGINES if on_path(name)]
    if len(found) == 2 and is_podman(on_path("docker")):
        found = ["podman"]
    return found or ["docker"]


def find_pods(names: Sequence[str] = ()) -> dict[str, Container]:
    """The containers on this host's engines that TazPod made, by name: all, or those that are named.

    An engine that does not answer is an error, unless another one does.
    """
    pods: dict[str, Container] = {}
    failures = []
    engines = engines_here()
    for engine in engines:
        try:
            for name, pod in pods_of(engine, names).items():
                pods.setdefault(name, pod)
        except TazpodError as error:
            failures.append(error)
    if len(failures) == len(engines):
        raise failures[0]
    return pods


def pods_of(engine: str, names: Sequence[str] = ()) -> dict[str, Container]:
    """The containers on one engine that TazPod made, by name: all, or those that are named.

    All its containers are looked at: Podman before 4.4 takes the filter `volume` for the folder of the
    host alone, and would show none.
    """
    if not names:
        listed = capture([engine, "container", "ls", "-aq"])
        if listed.code != 0:
            raise engine_error(listed)
        names = listed.out.decode().split()
    if not names:
        return {}
    result = capture([engine, "container", "inspect", *names])
    if result.code != 0 and "no such container" not in result.err.lower():  # one may have gone meanwhile
        raise engine_error(result)
    containers = [container_of(data)._replace(engine=engine) for data in json.loads(result.out)]
    return {container.name: container for container in containers if container.ours}


def project_of(name: str) -> Path:
    """The folder of a pod's project, wherever on this host it is.

    Whoever makes a container can mount any folder; so the project must know it too.
    """
    pod = None
    if re.fullmatch(CONTAINER_NAME, name):
        pod = find_pods([name]).get(name)
    if pod is None:
        raise UsageError(f"--pod: there is no pod named {name!r}", "tazpod list")
    project = Path(str(pod.project))
    refuse_moved(Config(project, name, user=pod.user or DEFAULT_USER, program=pod.engine), pod)
    if not (project / ENVELOPE).is_dir():
        raise TazpodError(f"the project of {name} is gone: {project}", way_out_of_moved(pod.engine, pod))
    named = parse_config(config_text(project), project)[0].container_name
    if name != named and pod.id not in read_records(project):
        raise TazpodError(
            f"{project} has the container {named}, and knows nothing of {name}",
            f"if {name} is not needed: {pod.engine} rm -f {name}",
        )
    return project


# Is the vault open?  Who asks decides what counts:
# - `is_open`, in the container, reads its own mount table.  All that works on the vault goes by it.
# - `asked_if_open`, on the host, has the container look, by docker-exec.  What is said, done or removed on
#   the host goes by it.
# - `seen_to_be_open`, on the host, reads the container's mount table from outside.  It spares the way to
#   the prompt a docker-exec; only its yes counts, since the engine may be another machine's.
# - `places_with_secrets`, last before a container is removed, and for `list`, takes no config's word for
#   where a vault is.


def asked_if_open(config: Config, strict: bool = True) -> bool:
    """Whether the vault in the container is open; to `strict`, an exec that failed is no answer.

    `mountpoint -q` itself says nothing: what is said comes from docker, on either output.  To Podman it
    says what it saw.
    """
    if config.container_name in OPTIONS.containers:  # in a dry run: it cannot be asked, since it does not run
        container = OPTIONS.containers[config.container_name]
        paused = container is not None and container.pid > 0  # which keeps a vault open, as the mark tells
        return paused and (config.project / ENVELOPE / "vault/.open").exists()
    result = capture(is_open_argv(config))
    said = result.err + result.out.decode(errors="replace")
    seen = re.search("is not a mountpoint|: No such file or directory|executable file .*not found", said)
    if strict and result.code != 0 and said.strip() and not seen:
        raise engine_error(result)
    return result.code == 0


def pull_image(config: Config) -> None:
    """`docker pull`, with Docker's own progress."""
    if run_foreground([config.program, "pull", full_name(config)]) != 0:
        raise TazpodError(
            f"the image {config.image} could not be pulled", "build it here from its Dockerfile: tazpod build"
        )


def build_image(config: Config) -> None:
    """`docker build` of the project's Dockerfile, with Docker's own progress."""
    import tempfile

    with tempfile.TemporaryFile() as file:  # what was approved, whatever becomes of the file meanwhile
        file.write(approved_dockerfile(config))
        file.seek(0)
        code = run_foreground(build_argv(config), stdin=file.fileno(), cwd=config.project)
    if code != 0:
        path = config.project / config.dockerfile
        raise TazpodError(f"the image {config.image} could not be built from {path}")


def get_image(config: Config) -> None:
    """Pull the image; when that fails, offer to build it."""
    progress(f"the image {config.image} is not here yet; pulling it")
    try:
        pull_image(config)
    except TazpodError as error:
        if not confirm(f"{error}. Build it from {config.dockerfile}?"):
            raise
        build_image(config)


# What a container is made from, besides the image: when one changes, the container is out of date.
MADE_FROM = (
    *("container_name", "user", "features.ghost_mode", "docker.args", "ports", "mounts", "env"),
    "network.dns",
)


def made_from(config: Config) -> dict[str, str]:
    """The settings that a container is made from, as text; of the value of a variable only a digest."""
    settings = settings_of(config)
    return {name: json.dumps(settings[name]) for name in MADE_FROM}


def create_container(config: Config, image: str) -> None:
    """`docker run`, with what it needs before, and a record of what it was made from, and on which engine.

    `image` is the id of the config's image, '' when it is not here.
    """
    if not image:
        tell_work(config.run_folder / UP_LOCK, b"pull")
        get_image(config)
    mtu = wanted_mtu(config)
    if mtu and capture([config.program, "network", "inspect", network_name(mtu)]).code != 0:
        progress(f"the way to the internet takes packets of {mtu} bytes: making a network for that")
        create_network(config, mtu)
    make_folder(home_folder() / ".ssh")  # Docker would make a missing one as root
    name = config.container_name
    progress(f"starting the container {name}")
    remember_engine(config)
    result = act(run_argv(config, home_folder(), mtu))
    if result.code != 0:
        left = find_container(config)
        if left and (left.name, left.status) == (name, "created"):  # a port is taken, say
            act([config.program, "rm", name])  # so that the next try begins anew
        raise engine_error(result)
    made = result.out.decode().strip()
    container = Container(made, "running", config.image, str(config.project), name=name)
    pretend(config, container)
    remember_project(config.project)
    remember_container(config, container, made=made_from(config))


def plain_image(name: str) -> str:
    """An image's name without what Podman adds to it: where it is from, and the tag that needs no word."""
    short = re.sub("^(localhost|docker.io(/library)?)/", "", name)
    if re.search("[:@][^/]*$", short):
        return short
    return f"{short}:latest"


def drift(config: Config, container: Container, present_image: str) -> list[str]:
    """In what a container is out of date, for people; [] when in nothing.

    `config` is the one of now, `present_image` the id of its image, '' when it is not here.  Of a
    container that another tool made only what docker tells is known.
    """
    found = []
    if plain_image(container.image) != plain_image(config.image):
        found.append(f"the image: it was made from {container.image}")
    elif present_image and container.image_id not in ("", present_image):
        found.append(f"the image: there is a newer {config.image}")
    changed = changed_since(config, container)
    if changed:
        found.append(f"the config: {', '.join(changed)} changed")
    if approved_git(config.project):  # else its person has not wanted it
        worktree = find_worktree(config.project, owners_of(config.project))
        if worktree and (str(worktree.own), str(worktree.inside)) not in container.binds:
            found.append(f"the git worktree: {worktree.common} is not mounted")
    wanted = wanted_mtu(config)
    has = network_mtu(container)
    if wanted and wanted < has:
        found.append(f"the network: its MTU is {has}, the way to the internet takes {wanted}")
    return found


def changed_since(config: Config, container: Container) -> list[str]:
    """The settings that differ from those that a container was made from, as far as that is known."""
    made = read_records(config.project).get(container.id, {}).get("made")
    if made is None:
        made = made_from(config_of(config, container))
    return [name for name, value in made_from(config).items() if made.get(name, value) != value]


def network_mtu(container: Container) -> int:
    """The MTU of a container's network: ours have it in their names."""
    mtu = ETHERNET_MTU
    for name in container.networks:
        with contextlib.suppress(ValueError):
            mtu = int(name.removeprefix(network_name(0)[:-1]))
    return mtu


def start_container(config: Config, container: Container | None, image: str) -> Container:
    """Make the container, start it again or let it go on; gives it as it is then."""
    name = config.container_name
    if container is None:
        create_container(with_git_mounts(config), image)
    elif container.status in IDLE_STATES:
        git = approved_git(config.project)
        for source, _ in container.binds:
            refuse_to_be_led_out(config.project, source, f"mounts: {source}")
            if git and leads_out(Path(git), source):
                raise TazpodError(f"{source}: goes through a link that leads out of {git}")
        if git:
            write_link_back(config)  # for a missing one the engine would make a folder of root's
        progress(f"starting the container {name} again")
        docker([config.program, "start", name])
        pretend(config, container._replace(status="running"))
    elif container.status == "paused":
        docker([config.program, "unpause", name])
        pretend(config, container._replace(status="running"))
    else:
        raise TazpodError(
            f"the container {name} is {container.status}", f"{config.program} rm -f {name}, then again"
        )
    started = look_for_container(config, new=container is None).container
    if started is None or not started.running:
        raise TazpodError(
            f"the container {name} stopped as soon as it was started",
            f"{config.program} logs {name} shows why; tazpod up --recreate makes it anew",
        )
    return started


def run_hook(argv: Sequence[str]) -> None:
    """Run hooks.post_up; its failure is told, and no reason to stay outside."""
    code = run_foreground(argv, stdin=DEVNULL)
    if code != 0:
        warn(f"hooks.post_up ended with status {code}")


def ensure_up(config: Config, *, tell: bool = False) -> tuple[Config, Container]:
    """Make the container run and hold this very tool, whatever state it is in.

    Gives it, and the config with which to work on it.  With `tell`, says in what it is out of date.
    """
    refuse_links(config)
    if re.search("[:\udc80-\udcff]", str(config.project)):  # it would make another folder, of root's
        what = "no engine can mount a folder with a colon, or what is not UTF-8, in its name"
        raise UsageError(f"{config.project}: {what}", "rename the folder")
    private_folder(config.run_folder)
    path = config.run_folder / UP_LOCK
    with locked_file(path, "starting the container", math.inf) as fd:
        if fd >= 0 and os.fstat(fd).st_size:
            tell_work(path, b"")  # what one that was killed has left there
        made, before, image = look_for_container(config)
        container = before
        if container is None or not container.running:
            container = start_container(made, container, image)
        refuse_exchanged_mounts(made, container, before)
        if not is_installed(made, container):
            prove_shared(made, container, before is None)
            if container.id in read_records(made.project):
                remember_container(made, container, fitted=None)  # until it is done: it may be cut off
            copy_tool(made)
            set_up_from_host(made, container)
        if config.post_up and not (before and before.in_memory):
            tell_work(path, b"hook")
            run_hook(exec_line_argv(made, f"exec 1>&2; {config.post_up}", terminal=False))
        if tell and before:
            old = drift(config, container, image)
            if old:
                warn(f"the container is older than {'; '.join(old)}; tazpod up --recreate makes it anew")
        return made, container


# What an engine puts into a container for --init, and where that is, by a link of the image's also.
INITS = ("docker-init", "catatonit", "tini", "tini-static")
INIT_PLACES = (
    "/sbin/docker-init",
    "/usr/sbin/docker-init",
    "/usr/bin/docker-init",
    "/run/podman-init",
    "/dev/init",
)
# What it keeps for a container beside its settings, in a folder that has the container's id.
ENGINES_OWN = (
    r"(userdata/|mounts/)?(hosts|hostname|resolv\.conf|passwd|group|localtime|\.containerenv|shm"
    r"|(run/)?secrets(/[^/]+)?|notify(/[^/]+)?)"
)
# What a container may have of these is no file of the host's, and root in it can mount any of them anew.
KERNELS_OWN = ("proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts", "devtmpfs")


def is_engines_own(container: Container, mount: Mount, points: Sequence[str]) -> bool:
    """Whether a mount of a container is what its engine puts into each, or nothing but the kernel's.

    The names alone say little: a folder of the host may have any.
    """
    if mount.kind in KERNELS_OWN or re.search(f"/{container.id}/{ENGINES_OWN}$", mount.root):
        return True
    named = mount.point in INIT_PLACES and os.path.basename(mount.root) in INITS
    return container.init and named and points.count(mount.point) == 1


def strange_mounts(
    container: Container, outside: Iterable[tuple[str, str]], table: Sequence[Mount], host: Sequence[Mount]
) -> list[Mount]:
    """Which mounts of a container show the host's, at no place that it was to have them at, and are not the
    engine's own.

    A mount through a link of the image's does not lie at its place.  So a bind that does not lead into the
    project, `outside`, and shows nothing there, stands for one mount elsewhere of just that file or folder.
    """
    places = {"/", WORKSPACE, *(os.path.normpath(place) for _, place in container.binds)}
    points = [mount.point for mount in table]
    devices = {mount.device for mount in host}  # what a program inside has made lies on none of them
    own = {mount.device for mount in host if container.id in mount.point}
    own |= {mount.device for mount in table if (mount.point, mount.kind, mount.root) == ("/", "overlay", "/")}
    missing = [
        what_lies_at(os.path.realpath(source), host)
        for source, place in outside
        if source and os.path.normpath(place) not in points
    ]
    found = []
    for mount in table:
        expected = mount.point in places and points.count(mount.point) == 1
        if expected or mount.device not in devices - own or is_engines_own(container, mount, points):
            continue
        shown = (mount.device, mount.root.removesuffix("//deleted"))  # a socket is made anew, say
        if shown in missing:
            missing.remove(shown)
        else:
            found.append(mount)
    return found


def exchanged_mounts(config: Config, container: Container) -> list[str]:
    """Which files and folders of the project a running container was to have, and has others: their paths.

    Those of a git worktree's repository as well.  A program that writes there may put a link there
    between our look and the engine's, which follows it at each start.
    """
    binds = [bind for bind in container.binds if passes_through(config.project, bind[0])]
    git = approved_git(config.project)
    if git:
        binds += [bind for bind in container.binds if _is_below(bind[0], git)]
    if not binds:
        return []
    host = own_mounts()
    parts = parts_of_project(config.project, host)
    if git:
        parts.append(what_lies_at(git, host))
    devices = {mount.device for mount in host}
    # Memory of the container's own, as the vault's, may lie upon such a place.
    table = [mount for mount in seen_mounts(container) if mount.kind != "tmpfs" or mount.device in devices]
    wrong = []
    for source, place in binds:
        mounted = [mount for mount in table if mount.point == os.path.normpath(place)]
        if not mounted:  # it may have led elsewhere, by a link in the container; or it was taken away
            outside = [bind for bind in container.binds if bind not in binds]
            mounted = strange_mounts(container, outside, table, host)
        if not all(is_part(mount.device, mount.root, parts) for mount in mounted):
            wrong.append(source)
    return wrong


def refuse_exchanged_mounts(config: Config, container: Container, before: Container | None) -> None:
    """Refuse a container with `exchanged_mounts`; one that was started just now is ended."""
    wrong = exchanged_mounts(config, container)
    if not wrong or OPTIONS.dry_run:
        return
    hint = "something exchanges files there: see what else runs in the project, then again"
    if before and before.in_memory:
        hint = "tazpod down, then again, also where you have moved it yourself"
    else:
        act([config.program, "kill", container.name])  # at once: Podman's rm waits ten seconds
    if before is None:
        act([config.program, "rm", "-f", container.name])
        forget_container(config, container)
    raise TazpodError(f"{', '.join(wrong)}: the container has something else than the project's", hint)


def sees_sign(config: Config, container: Container) -> bool:
    """Whether the container sees a file that is made here just now, under a name that nobody knows.

    Looked at as root, who may enter every folder, and where a server of files gives root no rights, as
    the image's user.  An image that has not even test(1) is refused by what comes next.
    """
    sign = config.run_folder / f".{random_hex(16)}"
    os.close(create_file(sign))
    try:
        for user in (["-u", "0"], []):
            place = str(WORKSPACE / sign.relative_to(config.project))
            result = capture([config.program, "exec", *user, container.name, "test", "-e", place])
            said = result.err + result.out.decode(errors="replace")
            if result.code == 0 or re.search("executable file .*not found", said):
                return True
            if result.code != 1 or re.search("^Error", said, re.MULTILINE):
                raise engine_error(result)
    finally:
        remove_file(sign)
    return False


def prove_shared(config: Config, container: Container, new: bool) -> None:
    """Prove that the container has this very folder: the engine may run on another machine.

    There it has a folder of its own under that name, which Docker makes when it is missing, and the
    vault in it is another one.  A new container without this folder is removed again.
    """
    if OPTIONS.dry_run or sees_sign(config, container):
        return
    if new:
        act([config.program, "rm", "-f", container.name])
        forget_container(config, container)
    raise not_shared(config)


def tool_files() -> Iterator[tuple[str, bytes]]:
    """This file and its libraries, from where they were loaded: each by its name, with what is in it."""
    if own_archive():
        import zipfile

        with zipfile.ZipFile(own_archive()) as archive:
            for name in archive.namelist():
                if name.endswith(".py") and name != "__main__.py":
                    yield name, archive.read(name)
        return
    yield "tazpod.py", Path(__file__).read_bytes()
    for module in ("plumbum", "yaml"):
        folder = Path(need(module).__file__).parent
        for path in sorted(folder.rglob("*.py")):
            yield str(path.relative_to(folder.parent)), path.read_bytes()
    with contextlib.suppress(MissingProgram):  # plumbum wants it on older Pythons
        yield "typing_extensions.py", Path(need("typing_extensions").__file__).read_bytes()


def pod_archive(config: Config) -> bytes:
    """A tar of this file, its launcher and its libraries, as they lie in the container."""
    import tarfile

    launcher = (
        "#!/bin/sh\n"
        "cd /  # else a lock typed inside the vault would be what keeps it busy\n"
        "trap '' INT  # until main takes it: Ctrl-C during the imports would show a traceback\n"
        f"exec python3 -Esc '{POD_START}' \"$@\"\n"
    ).encode()
    hook = shell_settings(config) + BASH_HOOK
    approval = read_approval(config.project)
    buffer = io.BytesIO()

    def add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
        info = tarfile.TarInfo(name[1:])
        info.mtime = int(time.time())
        info.size = len(data)
        info.mode = mode
        archive.addfile(info, io.BytesIO(data))

    with tarfile.open(fileobj=buffer, mode="w") as archive:
        if approval:  # another user of this host may have told the container of his
            told = {**approved_for_pod(config, approval), "text": approval.text}
            add(archive, POD_CONFIG, json.dumps(told).encode())  # before the tool goes by it
        for name, data in tool_files():
            add(archive, f"{POD_TOOL}/{name}", data)
        add(archive, POD_LAUNCHER, launcher, 0o755)
        add(archive, f"{POD_TOOL}/bashrc", hook.encode())
        end = buffer.tell() + 2 * tarfile.BLOCKSIZE
    return buffer.getvalue()[:end]  # less what tar fills it up with: `podman cp` stops reading before that


def shell_settings(config: Config) -> str:
    """What the text for every bash is told of this project."""
    place = ""
    if config.ghost_mode:
        place = config.secrets
    history = f"{place}/.vault_history"  # which no save seals
    if config.vault_history:
        history = f"{place}/.history"
    files = shlex.join(f"{name}={file}" for name, file in config.vault_env)
    return (
        f"__tazpod_secrets={place}\n__tazpod_history={history}\n__tazpod_files=({files})\n{AGENT_VARIABLES}"
    )


# What the words in a container go by, besides what it was made with.
POD_GOES_BY = r"(aws_sso|vault|sync)\..*|hooks\.pre_lock|identity|features\.(ssh_agent|debug)"


def approved_for_pod(config: Config, approval: Approval) -> dict[str, Any]:
    """What a container is told of the config."""
    settings = settings_of(config)
    known = {name: value for name, value in settings.items() if re.fullmatch(POD_GOES_BY, name)}
    # Whose vault it is, to the storage: by the config, though an older container may be called otherwise.
    name = approval.settings.get("container_name", config.container_name)
    return {"settings": known, "name": name, "aws_named": config.aws_named}


def fitting(config: Config) -> list[Any]:
    """What tells whether a container holds this very tool, set up for this config."""
    told = approved_for_pod(config, read_approval(config.project) or Approval())
    return [list(tool_stamp()), config.user, config.ghost_mode, list(config.links), list(config.binds), told]


def is_installed(config: Config, container: Container) -> bool:
    """Whether the container holds this very tool, set up for this config, as this host remembers it."""
    record = read_records(config.project).get(container.id, {})
    return bool(record) and record.get("fitted") == fitting(config)


def copy_argv(config: Config) -> list[str]:
    """docker-cp(1) of an archive into the container, whose files stay root's."""
    return [config.program, "cp", *ENGINES[config.program].copy, "-", f"{config.container_name}:/"]


def copy_tool(config: Config) -> None:
    """Put this tool into the container."""
    what = f"the tool could not be put into the container {config.container_name}"
    succeed(copy_argv(config), what, data=pod_archive(config))


def git_identity() -> dict[str, str]:
    """Who this person is to git on this host, without what a project says of it; never credentials."""
    who = {}
    home = home_folder()
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "git/config")
    if on_path("git") and (settings.exists() or (home / ".gitconfig").exists()):
        for name in ("name", "email"):
            result = capture(["git", "config", "--global", "--includes", f"user.{name}"])
            value = result.out.decode(errors="replace").strip()
            if result.code == 0 and value and value.isprintable():
                who[name] = value
    return who


def set_up_argv(config: Config, container: Container) -> list[str]:
    """docker-exec(1), as root, of what fits the container."""
    made: dict[str, Any] = {"user": config.user, "ghost_mode": config.ghost_mode, "vault_binds": config.binds}
    made["container"] = container.id
    identity = git_identity()
    if identity:
        made["git"] = identity
    words = ["python3", "-Esc", POD_START, SETUP_WORD, json.dumps(made), *config.links]
    return [config.program, "exec", "-u", "0", config.container_name, *words]


def set_up_from_host(config: Config, container: Container) -> None:
    """Fit the container, and remember that it was done."""
    result = act(set_up_argv(config, container))
    said = result.err + result.out.decode(errors="replace")  # docker tells its own trouble on either
    if re.search("executable file .*not found", said):
        raise MissingProgram(
            f"the image {config.image} has no python3, so it cannot hold the vault",
            "use an image built from Dockerfile.ai, or add python3 to yours",
        )
    relay(result.err)
    if result.code != 0:
        what = f"the container {config.container_name} could not be set up"
        if result.code == MISSING:
            raise MissingProgram(what, "see the line above")
        raise TazpodError(what, "see the line above")
    seen = result.out.strip() != NO_LOCKS
    if not seen:
        warn(f"{UNSEEN_LOCKS}; tazpod lock when you are done")
    ignored = config.project / ENVELOPE / ".gitignore"
    if not os.path.lexists(ignored):  # a project of Go TazPod has none, and git would take logins along
        write_whole(ignored, GITIGNORE.encode())
        progress(f"wrote {ignored.relative_to(config.project)}")
    remember_container(config, container, fitted=fitting(config), sees_locks=seen)
    for older in ("pod.json", "made.json"):  # version 0.5.0 kept its records there
        if os.path.lexists(config.run_folder / older):
            remove_file(config.run_folder / older)


def remap_accounts(passwd: str, group: str, user: str, uid: int, gid: int) -> tuple[str, str]:
    """/etc/passwd and /etc/group in which `user` has the ids of the project's owner.

    The user's line goes first, so that looking the id up finds this name and home even where
    the image has given the id to somebody else (passwd(5), getpwuid(3)).
    """
    lines = passwd.splitlines()
    mine = [line.split(":") for line in lines if line.split(":")[0] == user]
    if not mine or len(mine[0]) != 7:
        raise TazpodError(f"the image has no account named {user}", f"set user in {CONFIG_PATH}")
    old_gid = mine[0][3]
    mine[0][2:4] = [str(uid), str(gid)]
    others = [line for line in lines if line.split(":")[0] != user]
    groups = []
    for line in group.splitlines():
        parts = line.split(":")
        if len(parts) == 4 and parts[2] == old_gid and parts[0] == user:
            parts[2] = str(gid)
        groups.append(":".join(parts))
    return "\n".join([":".join(mine[0]), *others, ""]), "\n".join([*groups, ""])


def link_identity(home: Path, names: Sequence[str], before: Sequence[str]) -> None:
    """As the operator: link files and folders of the home into the envelope, and take our links of `before`
    away.  A file is what is one in the envelope.  What else is there in the home stays as it is.
    """
    envelope = Path(WORKSPACE, ENVELOPE)
    taken = []
    for name in dict.fromkeys((*before, *names)):
        place = home / name
        target = envelope / name
        ours = place.is_symlink() and os.readlink(place) == str(target)
        if name not in names:
            if ours:
                remove_file(place)
        elif place.is_file() and not place.is_symlink():
            taken.append(name)
        elif not (target.is_file() or make_folders(envelope, name) or target.is_dir()):
            warn(f"{target.relative_to(WORKSPACE)}: is no file or folder, so ~/{name} is not linked to it")
        elif not ours:
            with contextlib.suppress(OSError):
                if place.is_dir() and not place.is_symlink():
                    remove_folder(place)  # an empty one, as the bridge to a vault leaves it
                if make_folders(home, os.path.dirname(name)) and not os.path.lexists(place):
                    link_to(place, str(target))
                    continue
            taken.append(name)
    if taken:
        names_taken = ", ".join(f"~/{name}" for name in taken)
        adopt_line = f"tazpod adopt {shlex.join(taken)}"
        warn(f"{names_taken}: there already, on the container's disk; into {ENVELOPE}/ by: {adopt_line}")


def move_into(source: Path, target: Path) -> None:
    """Move a file, or what lies in a folder, to another file system; nothing is overwritten, and what a
    move that was cut off has left still lies in one of both.
    """
    if source.is_symlink() or not source.exists():
        raise TazpodError(f"{source}: is no file or folder, so there is nothing to move")
    there: list[str] = []
    if target.is_dir():
        there = os.listdir(target)
    argv = ["mv", "-n", "-T", "--", str(source), str(target)]
    twice = os.path.lexists(target)
    if source.is_dir():
        make_folder(target)
        argv = ["find", str(source), "-mindepth", "1", "-maxdepth", "1"]
        argv += ["-exec", "mv", "-n", "-t", str(target), "--", "{}", "+"]
        twice = not {*there}.isdisjoint(os.listdir(source))
    elif target.is_dir() and not there:
        remove_folder(target)
        twice = False
    if twice:
        raise TazpodError(f"{source} and {target} hold the same names", "move one of them away")
    succeed(argv, f"{source} could not be moved to {target}")
    if source.is_dir():
        remove_folder(source)
    elif source.exists() and not OPTIONS.dry_run:  # mv(1) passes over a name that came just now
        raise TazpodError(f"{source} could not be moved to {target}", "somebody has just made that file")


# What the set-up prints where a lock of the host's is not seen in the container, and what that means.
NO_LOCKS = b"no locks"
UNSEEN_LOCKS = "this engine hides the file locks of the host, so a host side that dies is not noticed"


def set_up_in_pod(made: Mapping[str, Any], links: Sequence[str]) -> None:
    """As root in a container: check its programs, fit the operator's ids, hook the shell and ssh."""
    import pwd
    import shutil

    user = str(made["user"])
    os.umask(0o022)  # what is installed here is for everybody in the container to read
    missing = [name for name in POD_PROGRAMS if not shutil.which(name)]
    if missing:
        raise MissingProgram(
            f"the image lacks what the vault needs: {', '.join(missing)}",
            "use an image built from Dockerfile.ai, or add them to yours",
        )
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise TazpodError(f"the image has no account named {user}", f"set user in {CONFIG_PATH}") from None
    uid, gid = fit_ids(account)
    fit_home(Path(account.pw_dir), uid, gid, links)
    write_whole(Path(POD_MADE), json.dumps({**made, "sees_locks": sees_locks()}).encode(), 0o644)
    hook_git(made.get("git", {}))
    hook_programs(user)


def fit_ids(account: pwd.struct_passwd) -> tuple[int, int]:
    """Give the operator the ids of whom the envelope belongs to, and the home with them; the ids."""
    # Seen as the operator, since some engines show every file as owned by whoever looks.
    uid = account.pw_uid
    gid = account.pw_gid
    with acting_as(uid, gid), contextlib.suppress(OSError):
        for place in (WORKSPACE, f"{WORKSPACE}/{ENVELOPE}"):  # the first where nobody else may enter it
            owner = os.lstat(place)
            uid = owner.st_uid
            gid = owner.st_gid
    if uid == account.pw_uid:
        return uid, gid
    passwd = Path("/etc/passwd")
    group = Path("/etc/group")
    texts = remap_accounts(passwd.read_text(), group.read_text(), account.pw_name, uid, gid)
    for path, text in zip((passwd, group), texts):
        write_whole(path, text.encode(), 0o644)
    # Only files of the image: -xdev and the prune keep out of the host's ~/.ssh.
    own = ["-uid", str(account.pw_uid), "-exec", "chown", "-h", f"{uid}:{gid}", "{}", "+"]
    prune = ["-path", f"{account.pw_dir}/.ssh", "-prune", "-o"]
    succeed(["find", account.pw_dir, "-xdev", *prune, *own], "the home could not be handed over")
    return uid, gid


def fit_home(home: Path, uid: int, gid: int, links: Sequence[str]) -> None:
    """Make the places of the vault in the home, and link the identity's folders."""
    # Whoever takes a locked vault for an open one must not write to the container's disk.
    for folder, mode in ((home / "secrets", 0o500), (home / ".aws", 0o700), (home / TRANSIT, 0o700)):
        make_folder(folder)
        if not os.path.ismount(folder):
            set_owner(folder, uid, gid)
            set_mode(folder, mode)
    record = Path(POD_TOOL, "links")
    before: list[str] = []
    if record.exists():
        before = record.read_text().split("\0")
    with acting_as(uid, gid):
        link_identity(home, links, before)
        with contextlib.suppress(OSError):  # ssh itself would make it for all to read
            os.close(create_file(Path(WORKSPACE, KNOWN_HOSTS)))
    write_whole(record, "\0".join(links).encode())


def git_settings(identity: Mapping[str, str]) -> str:
    """What git in the container is told: that the workspace is this person's, and who that is."""
    text = f"[safe]\n\tdirectory = {WORKSPACE}\n"
    if Path(WORKSPACE, ".git").is_file():  # of a worktree's repository too much is read-only here for that
        text += "[gc]\n\tauto = 0\n"
    text += "[user]\n"
    for name, value in identity.items():
        if name in ("name", "email") and value.isprintable():
            quoted_value = value.replace("\\", "\\\\").replace('"', '\\"')
            text += f'\t{name} = "{quoted_value}"\n'
    return text


def hook_git(identity: Mapping[str, str]) -> None:
    """Let git read that from the system's settings, over which those of the home stand."""
    write_whole(Path(POD_TOOL, "gitconfig"), git_settings(identity).encode(), 0o644)
    path = Path("/etc/gitconfig")
    include = f"[include]\n\tpath = {POD_TOOL}/gitconfig\n"
    text = ""
    if path.exists():
        text = path.read_text()
    if include not in text:
        write_whole(path, (include + text).encode(), 0o644)


def hook_programs(user: str) -> None:
    """Let every bash read our text, ssh write into the project, and `tazpod` be this very tool."""
    ssh_config = Path("/etc/ssh/ssh_config.d/tazpod.conf")
    if ssh_config.parent.is_dir():
        write_whole(ssh_config, SSH_CONFIG.encode(), 0o644)
    hook = f". {POD_TOOL}/bashrc\n"
    bashrc = Path("/etc/bash.bashrc")
    text = ""
    if bashrc.exists():
        text = bashrc.read_text()
    if hook not in text:
        write_whole(bashrc, (text + hook).encode(), 0o644)
    # The published image brings a tazpod of its own; ours must be the first that is found.
    who = ["sudo", "-n", "-u", user, "-H", "bash", "-lc", "command -v tazpod"]
    found = capture(who).out.decode(errors="replace").strip()
    if os.path.isabs(found) and found != POD_LAUNCHER:
        write_whole(Path(found), Path(POD_LAUNCHER).read_bytes(), 0o755)
    act(["python3", "-m", "compileall", "-q", POD_TOOL])


def sees_locks() -> bool:
    """In a container that is set up: whether the lock that the host holds meanwhile is one here too."""
    place = Path(POD_RUN, UP_LOCK)
    with contextlib.suppress(OSError), closing(open_shared(place)) as fd:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    return True


def noted_by_root(path: str) -> dict[str, Any]:
    """In a container: what root, or the host, has noted there in JSON; nothing where nobody has."""
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
        noted = json.loads(file.read())
        if os.fstat(file.fileno()).st_uid == 0 and isinstance(noted, dict):
            return noted
    return {}


def pod_made() -> dict[str, Any]:
    """In a container: what it was made with."""
    return noted_by_root(POD_MADE)


def as_made(config: Config) -> Config:
    """In a container: the config with which to work on its vault, whatever config.yaml says by now."""
    made = pod_made()
    return config._replace(
        user=made.get("user", config.user),
        ghost_mode=made.get("ghost_mode", config.ghost_mode),
        vault_binds=tuple(made.get("vault_binds", config.binds)),
        vault_agents=False,  # the line before has them
    )


def stop_container(config: Config, container: Container) -> None:
    """Stop and remove the container: docker-kill(1), docker-stop(1), docker-rm(1)."""
    # `sleep` as process 1 ignores the signal that `docker stop` sends, which then waits ten seconds to do
    # what `docker kill` does at once.
    for verb in ("kill", "stop", "rm"):
        result = act([config.program, verb, config.container_name])
        idle = verb == "kill" and re.search("is not running|can only kill running|state improper", result.err)
        if result.code != 0 and not idle:
            raise engine_error(result)
    pretend(config, None)
    remove_file(project_state(config.project) / "engine")
    forget_container(config, container)


# ── 6. vault ──────────────────────────────────────────────────────────────────────────────
#
# The sealed vault is an OpenPGP message made by `gpg --symmetric` over a tar archive.  The open
# one is a tmpfs.  The tmpfs is mounted on TRANSIT, filled there, and moved to its place only
# when it is complete; a lock moves it back there before it is emptied.  So a mount at the place
# of the secrets is always a finished unlock, and one at TRANSIT may always be thrown away.


class Vault:
    """Where a vault lives: its folder on disk, and in the operator's home its mount in RAM."""

    def __init__(
        self,
        folder: Path,
        home: Path,
        size: str = "64m",
        keep: int = 5,
        binds: tuple[str, ...] = (".aws",),
        *,
        ram: str = RAM,
    ) -> None:
        self.folder = folder
        self.home = home
        self.size = size
        self.keep = keep
        self.binds = binds
        self.ram = ram
        self.sealed = folder / SEALED_NAME
        self.history = folder / "history"
        self.order = folder / ".order"  # the names in the history, as they were added
        self.mount = home / "secrets"
        self.transit = home / TRANSIT
        self.marker = folder / ".open"  # on disk while the vault is open; its time: the last save


# -- mounts: proc_pid_mountinfo(5)


def mounts_after(table: Sequence[Mount], argv: Sequence[str]) -> list[Mount]:
    """The mounts as a call of mount(8) or umount(8) would leave them."""
    after = list(table)
    if argv[0] == "umount":
        for place in argv[1:]:
            there = [mount for mount in after if mount.point == place]
            after = [mount for mount in after if mount not in there[-1:]]
        return after
    if argv[0] != "mount" or any("remount" in word for word in argv):
        return after
    *_, source, point = argv
    if "tmpfs" in argv:
        device = f"0:{9_000_000 + len(after)}"  # a number that no device has
        return [*after, Mount(device, point, "tmpfs", source=source)]
    around = [mount for mount in table if f"{source}/".startswith(f"{mount.point.rstrip('/')}/")]
    shown = max(around, key=lambda mount: len(mount.point))
    if "--move" in argv:
        after.remove(shown)
    return [*after, shown._replace(point=point)]


def table_of(process: str = "/proc/self") -> str:
    """The mount table of a process, with every character that a path in it may have."""
    return os.fsdecode(Path(process, "mountinfo").read_bytes())


def mount_table() -> list[Mount]:
    """The mounts that this process sees; in a dry run, as what it has shown would have left them."""
    table = parse_mountinfo(table_of())
    for argv in OPTIONS.mounts:
        table = mounts_after(table, argv)
    return table


def mounts_at(path: Path) -> list[Mount]:
    """What is mounted exactly at `path`, the topmost last."""
    return [mount for mount in mount_table() if mount.point == str(path)]


def mounted_at(path: Path) -> Mount | None:
    """What is mounted exactly at `path`, the topmost if there are several."""
    found = mounts_at(path)
    if not found:
        return None
    return found[-1]


def mounts_of(device: str) -> list[str]:
    """Every place where a device is mounted, the latest first."""
    return [mount.point for mount in reversed(mount_table()) if mount.device == device]


def is_open(vault: Vault) -> bool:
    """Whether the vault is open; anything but a tmpfs in its place is an error."""
    mount = mounted_at(vault.mount)
    if mount is None:
        return False
    if mount.kind != "tmpfs" or mount.root != "/":
        what = f"a {mount.kind}" if mount.root == "/" else "only a part of one"
        raise VaultError(f"{vault.mount}: {what} is mounted where the secrets belong")
    if OPTIONS.dry_run or _device_of(vault.mount) == mount.number:
        return True
    if mounted_at(vault.mount) != mount:  # it was moved meanwhile
        return is_open(vault)
    hint = "findmnt shows which; take it away: sudo umount"
    raise VaultError(f"{vault.mount}: another mount covers the open vault", hint)


def ram_name(container: str) -> str:
    """What a mount table calls the memory of an open vault of a container, wherever it is moved to.

    Other containers' memory can be seen where all share the processes of the host, or lies under a project.
    """
    if not container:
        return RAM
    return f"{RAM}-{container[:12]}"


def may_hold_secrets(mount: Mount) -> bool:
    """Whether this is memory, and not that of a vault that was destroyed."""
    return mount.kind == "tmpfs" and not re.fullmatch(DESTROYED, mount.options)


def is_open_ram(mount: Mount, name: str) -> bool:
    """Whether this is the memory of an open vault of that name, wherever it is."""
    return mount.source == name and may_hold_secrets(mount)


def lies_at_secrets(mount: Mount) -> bool:
    """Whether this may be an open vault by its place, in whatever home: an older tazpod gave all one name."""
    place = f"/home/[^/]+/(secrets|{re.escape(TRANSIT)})"
    return may_hold_secrets(mount) and bool(re.fullmatch(place, mount.point))


def led_astray(vault: Vault) -> tuple[dict[str, bool], dict[int, str]]:
    """Where a vault that is not in its place is open all the same, in whatever mount namespace.

    By place, whether all of it is there.  And if this namespace does not show it, the processes whose
    namespaces do.
    """
    aside = [mount.device for mount in mounts_at(vault.transit)]  # on its way in or out
    found: dict[str, bool] = {}
    holders = {}
    for mount in mount_table():
        older = mount.source == RAM and lies_at_secrets(mount)
        if (older or is_open_ram(mount, vault.ram)) and mount.device not in aside:
            found[mount.point] = mount.root == "/"
    if found:
        return found, {}
    for process in other_processes():
        with contextlib.suppress(OSError):
            text = table_of(str(process))
            if f" {vault.ram} " not in text:
                continue
            for mount in parse_mountinfo(text):
                if is_open_ram(mount, vault.ram) and mount.device not in aside:
                    found[mount.point] = mount.root == "/"
                    holders[int(process.name)] = name_of(process)
    return found, holders


def refuse_open_elsewhere(vault: Vault) -> None:
    """In a container: an error for a vault that is not open in its place, and is, or may be, in another one.

    That is some other place of this container, or another container of the project.
    """
    if not in_pod():
        return
    places, holders = led_astray(vault)
    where = ", ".join(places)
    end_all = "or end all of it: tazpod down --discard"
    if holders:
        who = ", ".join(list_holders(holders)[:5])
        raise VaultError(
            f"the open vault was moved: only {who} can see it, at {where}",
            "end that, and what is in there is given up (in the container:"
            f" sudo kill {' '.join(map(str, sorted(holders)[:5]))}); {end_all}",
        )
    whole = [place for place, is_whole in places.items() if is_whole]
    if whole:
        raise VaultError(
            f"the open vault was moved: it is mounted at {where}",
            f"put it back (sudo mount --move {quoted(whole[0], str(vault.mount))}); {end_all}",
        )
    if places:
        raise VaultError(
            f"the open vault was unmounted, but for a part of it: {where}",
            f"copy what you need from there, or in a shell that is still in the vault; {end_all}",
        )
    if is_guarded_elsewhere(vault):
        what = "another container of this project is at work, and may hold its open vault"
        raise VaultError(what, "on the host: tazpod list, then tazpod --pod NAME lock")


def in_one_call(commands: Sequence[Sequence[str]]) -> list[str]:
    """The argv that runs commands as root, one after the other until one fails: each sudo costs time."""
    if len(commands) == 1:
        return as_root(commands[0])
    return as_root(["sh", "-c", " && ".join(map(shlex.join, commands))])


def change_mounts(*commands: Sequence[str]) -> Result:
    """Run commands that change mounts, and wait for their end whatever signal comes.

    A mount that was made after this process had ended would be cleaned up by nobody.
    """
    if OPTIONS.dry_run:
        OPTIONS.mounts += commands
    with uninterrupted():
        return act(in_one_call(commands))


def bytes_of(size: str) -> int:
    """A size of the config in bytes."""
    return int(size[:-1]) << {"k": 10, "m": 20, "g": 30}[size[-1].lower()]


def tmpfs_argv(place: Path, size: str, name: str, extra: str = ",noswap") -> list[str]:
    """mount(8) of a tmpfs of this user's, with a file for each 512 bytes that it may hold.

    The kernel keeps some 800 bytes of each file, however empty, that its size does not count.
    """
    files = max(1024, bytes_of(size) // 512)  # never so few as DESTROYED tells
    options = f"size={size},nr_inodes={files},mode=0700,uid={os.getuid()},gid={os.getgid()}"
    options += f",nosuid,nodev,noexec{extra}"
    return ["mount", "-t", "tmpfs", "-o", options, name, str(place)]


def noswap_refused() -> str:
    """Why a tmpfs could not be kept out of swap: only the first of all user namespaces may ask for that."""
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", str(2**32 - 1)]:
        return "an engine without root may not use noswap"
    return "the kernel does not know noswap"


def mount_ram(place: Path, size: str, name: str) -> int:
    """Mount a tmpfs of this user's (tmpfs(5), mount(8)); a descriptor of it, proven to be one.

    Who writes through the descriptor writes to RAM, whatever becomes of the mount.
    """
    for extra in (",noswap", ""):  # kernels before 6.4 do not know it
        result = change_mounts(tmpfs_argv(place, size, name, extra))
        if result.code == 0:
            break
    else:
        raise VaultError(
            f"no tmpfs could be mounted for the secrets: {result.reason}",
            "the container needs SYS_ADMIN: remove it with `tazpod down`, then `tazpod up`",
        )
    if not extra and len(Path("/proc/swaps").read_text().splitlines()) > 1:
        warn(f"{noswap_refused()}: an open vault may be written to swap; turn swap off, or encrypt it")
    fd = os.open(place, _FOLDER)
    if OPTIONS.dry_run:
        return fd
    mount = mounted_at(place)
    device = os.fstat(fd).st_dev
    wanted = Mount(f"{os.major(device)}:{os.minor(device)}", str(place), "tmpfs", "/", name)
    if mount is None or mount._replace(options="", shared=False) != wanted:
        os.close(fd)
        raise VaultError(f"{place}: mount said done, but no tmpfs is there")
    return fd


def must_be_empty(folder: Path) -> None:
    """Make a folder that a mount is to cover, unless it is there; nothing may lie in it."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise VaultError(f"{folder}: is not a folder")
    make_folder(folder)
    if any(folder.iterdir()):
        raise VaultError(
            f"{folder}: there are files on the container's disk where only RAM may be",
            "look at them, move what you need, delete the rest",
        )


def tell_on_disk(vault: Vault) -> None:
    """Name what somebody has written to the place of a locked vault, where only its owner is refused."""
    names = stray_names(vault)
    if names:
        shown = ", ".join(names[:5])
        rest = f" and {len(names) - 5} more" if names[5:] else ""
        warn(
            f"{vault.mount}: on the container's disk, not in the vault, and gone with the container: "
            f"{shown}{rest}; move them away, unlock, move them back"
        )


def stray_names(vault: Vault) -> list[str]:
    """What lies at the place of a vault that is not open."""
    if mounted_at(vault.mount):
        return []
    with contextlib.suppress(OSError):
        return sorted(os.listdir(vault.mount))
    return []


def mount_tmpfs(vault: Vault) -> int:
    """Mount a fresh tmpfs on TRANSIT, over an empty folder; a descriptor of it."""
    must_be_empty(vault.transit)
    return mount_ram(vault.transit, vault.size, vault.ram)


def shared_around(*places: Path) -> list[str]:
    """Which shared mounts these places lie in."""
    found = {}
    table = mount_table()
    for place in places:
        around = [mount for mount in table if _is_below(str(place.parent), mount.point)]
        around.sort(key=lambda mount: len(mount.point))  # of several at one point, the topmost stays the last
        if around and around[-1].shared:
            found[around[-1].point] = True
    return list(found)


def move_mount(source: Path, target: Path, *more: Sequence[str]) -> bool:
    """Move a mount in one step, busy or not (mount(8), --move); the mount table tells whether it did.

    `more` is done to it in its new place; whether that went well.  The kernel moves nothing out of a shared
    mount, as somebody makes all of them who runs containers in this one; so that is private meanwhile.
    """
    move = ["mount", "--move", str(source), str(target)]
    result = change_mounts(move, *more)
    shared = []
    if mounted_at(source) is not None:
        shared = shared_around(source, target)
    if shared:
        change_mounts(*(["mount", "--make-private", place] for place in shared))
        try:
            result = change_mounts(move, *more)
        finally:
            change_mounts(*(["mount", "--make-shared", place] for place in shared))
    if mounted_at(source) is not None or mounted_at(target) is None:
        raise VaultError(f"{source} could not be moved to {target}: {result.reason}")
    return result.code == 0


def remount_argv(place: Path, mode: str) -> list[str]:
    """mount(8) that makes a whole file system read-only (`ro`), writable (`rw`) or so large (`size=`)."""
    return ["mount", "-o", f"remount,{mode}", str(place)]


def set_aside(vault: Vault) -> bool:
    """Move the open vault to TRANSIT, and freeze it there; whether that froze.

    The kernel refuses the freeze while a file is open for writing, or one that was deleted is open.  So it
    is tried a few times, for a program that is in the middle of a write.
    """
    if vault.transit.is_symlink():  # root would follow it
        remove_file(vault.transit)
    make_folder(vault.transit)
    freeze = remount_argv(vault.transit, "ro")
    frozen = move_mount(vault.mount, vault.transit, freeze)
    for _ in range(ATTEMPTS):
        if frozen:
            break
        time.sleep(0.03)
        frozen = change_mounts(freeze).code == 0
    return frozen


def elsewhere(vault: Vault, mount: Mount) -> list[str]:
    """Every other place where the memory of a vault is mounted that was set aside, the latest first."""
    return [place for place in mounts_of(mount.device) if place != str(vault.transit)]


def shut_off(vault: Vault) -> dict[int, str]:
    """Leave no path of a session to a vault that was set aside: the processes that can write to it still."""
    mount = mounted_at(vault.transit)
    if mount is None:
        return {}
    for place in elsewhere(vault, mount):
        unmount(Path(place))
    return holders_of(mount)


def put_back(vault: Vault) -> None:
    """Undo `set_aside`, and `shut_off`."""
    change_mounts(remount_argv(vault.transit, "rw"))
    if not any(mounted_at(vault.home / name) for name in vault.binds):
        bind_into_home(vault)
    move_mount(vault.transit, vault.mount)


def destroy_transit(vault: Vault) -> list[str]:
    """Destroy what is mounted on TRANSIT: nobody reads it again, wherever and however he holds it.

    To unmount it is not enough: a process that has an open file, an overlay or a mount namespace of
    its own keeps the tmpfs alive.  So every file is truncated first, always.  Gives the processes that
    held it, as `pid (command)`.
    """
    holders: dict[int, str] = {}
    while True:
        mount = mounted_at(vault.transit)
        if mount is None:
            return list_holders(holders)
        if mount.kind != "tmpfs":
            raise VaultError(f"{vault.transit}: a {mount.kind} is mounted there")
        device = mount.number
        holders.update(holders_of(mount))
        for inner in mounts_inside(vault.transit):
            if inner.kind == "tmpfs":  # somebody's own, which is not ours to empty
                holders.update(scan_holders(inner.number))
        if holders or not erase_and_unmount(vault, mount):
            holders.update(destroy_held(vault, mount, device, holders))
        binds = [vault.home / name for name in vault.binds]
        places = [str(place) for place in (vault.transit, vault.mount, *binds)]
        holders.update(scan_namespaces(mount.device, places))  # who came meanwhile
        for place in binds:
            late = mounted_at(place)  # what a killed unlock has bound there just now
            if late and late.device == mount.device:  # by its place: the number may be another's by now
                unmount(place)


def mounts_inside(place: Path) -> list[Mount]:
    """What is mounted below a place, the latest first: it hides what lies under it."""
    return [mount for mount in reversed(mount_table()) if mount.point.startswith(f"{place}/")]


def erase_argvs(place: Path) -> list[list[str]]:
    """find(1) that empties every file of a mount, and then removes all that is in it."""
    find = ["find", str(place), "-xdev"]
    return [
        [*find, "-type", "f", "-exec", "truncate", "-s0", "{}", "+"],
        [*find, "-mindepth", "1", "-delete"],
    ]


def marked(files: int) -> str:
    """The options that make memory as small as DESTROYED tells, for so many files and folders."""
    return f"size={os.sysconf('SC_PAGE_SIZE') >> 10}k,nr_inodes={files}"


def destroy_argvs(place: Path, inside: Sequence[str], others: Sequence[str]) -> list[list[str]]:
    """What destroys a mount that nobody holds, with what is mounted inside it and the other places it has.

    The mark shows where somebody has come meanwhile, or a file keeps a namespace; the kernel refuses it where
    anything but the empty folder is left, such as what was deleted and is held.
    """
    commands = []
    if inside:
        commands.append(["umount", *inside])
    # Before it can be written to again: what somebody wrote by a path now would be erased unseen.
    commands += [["umount", other] for other in others]
    commands += [remount_argv(place, "rw"), *erase_argvs(place)]
    return [*commands, remount_argv(place, f"ro,{marked(1)}"), ["umount", str(place)]]


def erase_and_unmount(vault: Vault, mount: Mount) -> bool:
    """Destroy what nobody holds, all in one call; False when something was in the way."""
    place = vault.transit
    inside = [inner.point for inner in mounts_inside(place)]
    others = [other for other in elsewhere(vault, mount) if other not in inside]
    before = len(mounts_at(place))
    change_mounts(*destroy_argvs(place, inside, others))
    return len(mounts_at(place)) < before


def destroy_held(vault: Vault, mount: Mount, device: int, found: Mapping[int, str]) -> dict[int, str]:
    """Destroy what somebody holds, `found` among them, and take it away under them; who they were."""
    place = vault.transit
    inside = [inner.point for inner in mounts_inside(place)]
    for other in dict.fromkeys((*inside, *elsewhere(vault, mount))):
        unmount(Path(other))
    change_mounts(remount_argv(place, "rw"))
    holders = {**found, **empty_held(device)}
    if os.geteuid() == 0:
        left = empty_tree(place, device)
    else:
        told = ask_root(device, place)
        left = told["left"]
        holders.update({int(pid): str(name) for pid, name in told["held"].items()})
    if left:
        raise VaultError(f"{left[0]} could not be emptied: the vault is not destroyed", "tazpod down")
    # Who holds the folder makes nothing new in it; those below it are deleted, and take nothing any more.
    change_mounts(["chown", "0:0", str(place)], erase_argvs(place)[1])
    for _ in range(ATTEMPTS):
        room = room_of(place, device)
        if room is None or room.f_bfree == room.f_blocks:
            break
        time.sleep(0.03)  # a program that outlived its tazpod may still be writing what was deleted just now
        holders.update(empty_held(device))
    refuse_what_is_left(place, device)
    has_mark = mark_destroyed(place, device)
    if not unmount(place) and not holders:
        holders[0] = "it may not be looked into"
    if holders and not has_mark:
        warn("the vault was emptied, but what still holds its memory may write there, and that is lost")
    return holders


def room_of(place: Path, device: int) -> os.statvfs_result | None:
    """What a vault that is destroyed still takes (statvfs(3)); None where it is gone already.

    An umount that outlived its tazpod may have been faster: then this is the disk.
    """
    if OPTIONS.dry_run:
        return None
    with closing(os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as folder:
        if os.fstat(folder).st_dev != device:
            return None
        return os.statvfs(folder)


def mark_destroyed(place: Path, device: int) -> bool:
    """Put the mark on a vault that was emptied, so that it takes nothing any more; whether it is there."""
    for _ in range(ATTEMPTS):
        files = 1
        room = room_of(place, device)
        if room:
            files = room.f_files - room.f_ffree
        done = change_mounts(remount_argv(place, f"ro,{marked(files)}"))
        if done.code != 0:  # the kernel refuses `ro` while a folder is held that was deleted
            done = change_mounts(remount_argv(place, marked(files)))
            change_mounts(remount_argv(place, "bind,ro"))  # of the mount, for root who sits in it
        if done.code == 0:
            break
        time.sleep(0.03)  # they come and go with what others hold
    mount = mounted_at(place)
    return OPTIONS.dry_run or mount is None or not may_hold_secrets(mount)


def refuse_what_is_left(place: Path, device: int) -> None:
    """VaultError when a vault that was emptied still holds something: a file that was deleted, and that a
    process has open into which nobody may look."""
    room = room_of(place, device)
    if room is None or room.f_files - room.f_ffree == 1:  # the folder itself
        return
    left = (room.f_blocks - room.f_bfree) * room.f_frsize
    if not room.f_blocks:
        raise VaultError(
            f"{place} was made a file system without a limit, which does not tell whether it is empty",
            "end all in the container: tazpod down --discard",
        )
    if left:
        raise VaultError(
            f"{left >> 10} KiB of deleted files are still held by a process that may not be looked into,"
            " so the vault is not destroyed",
            "end that process, or all in the container: tazpod down --discard",
        )


def try_unmount(place: Path, *options: str) -> str:
    """Take the topmost mount of a place away (umount(8)); '' when it is gone, else why it is not."""
    before = len(mounts_at(place))
    result = change_mounts(["umount", *options, str(place)])
    left = len(mounts_at(place))
    if left < before or not left:  # an umount that outlived its tazpod may have been faster
        return ""
    return result.reason


def unmount(place: Path) -> bool:
    """Unmount, lazily when it is busy; whether it was idle."""
    if not try_unmount(place):
        return True
    failure = try_unmount(place, "-l")
    if failure:
        raise VaultError(f"{place} could not be unmounted: {failure}")
    return False


# -- who holds a file system: proc(5)


def other_processes() -> Iterator[Path]:
    """The folders in /proc of all other processes."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            yield entry


def name_of(process: Path) -> str:
    """The command of a process, for people."""
    with contextlib.suppress(OSError):
        return (process / "comm").read_text(errors="replace").strip()
    return "?"


def list_holders(processes: Mapping[int, str]) -> list[str]:
    """Processes for people; 0 for one that nobody may look into."""
    return [f"{pid or 'a process'} ({name})" for pid, name in sorted(processes.items())]


def scan_namespaces(device: str, places: Collection[str] = ()) -> dict[int, str]:
    """The processes whose mount namespace is not ours and shows a device, too; anybody may look at that.

    With `places` only a mount there counts: once a device is gone, its number may be given to another.
    """

    def mount_ids(process: str) -> set[str]:
        ids = set()
        for line in table_of(process).split("\n"):
            if f" {device} " in line and (not places or parse_mountinfo(line)[0].point in places):
                ids.add(line.split()[0])
        return ids

    ours = mount_ids("/proc/self")
    found = {}
    for process in other_processes():
        with contextlib.suppress(OSError):
            if mount_ids(str(process)) - ours:
                found[int(process.name)] = name_of(process)
    return found


def _device_of(place: Path) -> int:
    try:
        return place.stat().st_dev
    except OSError:
        return -1


def open_things(process: Path) -> list[Path]:
    """What a process has open or runs from, by its links in /proc."""
    found = [process / "cwd", process / "root", process / "exe"]
    for thread in (process / "task").iterdir():  # each may have a table of files of its own
        with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
            found += (thread / "fd").iterdir()
    return found


def scan_holders(device: int) -> dict[int, str]:
    """The processes with something of a device open; only those that this user may look into."""
    mapped = f" {os.major(device):02x}:{os.minor(device):02x} "
    found = {}
    for process in other_processes():
        with contextlib.suppress(OSError):
            held = any(_device_of(place) == device for place in open_things(process))
            if held or mapped in (process / "maps").read_text(errors="replace"):
                found[int(process.name)] = name_of(process)
    return found


def holders_of(mount: Mount) -> dict[int, str]:
    """The processes that have something of a mount's file system open, or in a namespace of their own."""
    return {**scan_holders(mount.number), **scan_namespaces(mount.device)}


def empty_held(device: int) -> dict[int, str]:
    """Empty the files of a device that processes have open, deleted or not; who they are.

    Root in a container has no SYS_PTRACE and sees other processes than the operator: both must look.
    """
    found = scan_holders(device)
    for pid in found:
        with contextlib.suppress(OSError):
            for place in (*open_things(Path(f"/proc/{pid}")), *Path(f"/proc/{pid}/map_files").iterdir()):
                empty_file(place, device)
    return found


def empty_tree(root: Path, device: int) -> list[str]:
    """Empty every file of a device in a folder, also those that may not be changed; which would not be."""
    left = []
    empty_file(root, device)
    for path in all_below(root):
        if not empty_file(path, device, os.O_NOFOLLOW):
            left.append(str(path))
    return left


_GET_FLAGS = 0x80086601  # FS_IOC_GETFLAGS
_SET_FLAGS = 0x40086602  # FS_IOC_SETFLAGS
_FIXED = 0x10 | 0x20  # immutable, append only


def empty_file(path: Path, device: int, flags: int = 0) -> bool:
    """Empty a file of a device, if one is there, of its attributes as well; False when this user may not."""
    if OPTIONS.dry_run:
        return True
    try:
        seen = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
    except OSError:
        return True  # gone by now
    same = f"/proc/self/fd/{seen}"  # whatever the name leads to by now
    try:
        info = os.fstat(seen)
        if info.st_dev != device:
            return True
        remove_attributes(same)
        if stat.S_ISREG(info.st_mode) and info.st_size:
            with contextlib.suppress(OSError):
                make_changeable(same)
            with contextlib.suppress(OSError):
                os.chmod(same, 0o600)
            os.truncate(same, 0)
        return True
    except OSError:
        return False
    finally:
        os.close(seen)


def remove_attributes(path: str) -> None:
    """Take the extended attributes from a file or folder, but for those that the kernel keeps for itself."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listxattr(path)
    for name in names:
        with contextlib.suppress(OSError):
            os.removexattr(path, name)


def make_changeable(path: str) -> None:
    """Take the attributes `immutable` and `append only` from a file (ioctl_iflags(2))."""
    with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        flags = int.from_bytes(fcntl.ioctl(fd, _GET_FLAGS, bytes(8)), sys.byteorder)
        if flags & _FIXED:
            fcntl.ioctl(fd, _SET_FLAGS, (flags & ~_FIXED).to_bytes(8, sys.byteorder))


def ask_root(device: int, place: Path) -> dict[str, Any]:
    """Have root empty a mount, and what root's processes hold of it: those, and what would not be emptied."""
    side = f"HOST_CWD={os.environ.get('HOST_CWD', '')}"  # sudo hands no variables down: see `in_pod`
    words = [sys.executable, "-Es", __file__, HOLDERS_WORD, str(device), str(place)]
    result = succeed(as_root(["env", side, *words]), f"{place} could not be emptied")
    if OPTIONS.dry_run:
        return {"held": {}, "left": []}
    told: dict[str, Any] = json.loads(result.out)
    return told


# -- the sealed file


def check_folder(vault: Vault) -> None:
    """The vault's folder must be a real folder of this user; its mode is made 0700."""
    folder = vault.folder
    try:
        info = os.lstat(folder)
    except FileNotFoundError:
        make_folder(folder)
        return
    if not stat.S_ISDIR(info.st_mode):
        raise VaultError(f"{folder}: is not a folder (a link is not followed)")
    if info.st_uid != os.geteuid():
        raise VaultError(
            f"{folder}: belongs to user {info.st_uid}, not to {os.geteuid()}",
            "tazpod doctor, on the host, tells how to mend that",
        )
    if stat.S_IMODE(info.st_mode) != 0o700:
        set_mode(folder, 0o700)


@contextlib.contextmanager
def exclusive(vault: Vault, wait: float = WAIT_LIMIT) -> Iterator[None]:
    """The one lock for everything that reads or writes the sealed file."""
    check_folder(vault)
    with locked_file(vault.folder / ".lock", "working on the vault", wait):
        remove_leftovers(vault)
        yield


def remove_leftovers(vault: Vault) -> None:
    """Take away what killed words have left unfinished; for who holds the lock, under which it was made."""
    stale = list(vault.history.glob(".*.tmp"))
    for name in (SEALED_NAME, vault.marker.name, vault.order.name):
        stale += vault.folder.glob(f".{name.lstrip('.')}.*.tmp")
    with writable_or_not():
        for path in stale:
            remove_file(path)


def open_sealed_file(path: Path) -> int:
    """A descriptor of a sealed file: a regular file with something in it, nothing else."""
    hint = "an earlier version may help: tazpod history"
    if OPTIONS.dry_run and not os.path.lexists(path):
        return nowhere()  # it would have been fetched
    try:
        fd = open_shared(path)
    except OSError as error:
        raise VaultError(f"{path}: {error.strerror}", hint) from None
    if os.fstat(fd).st_size > 0:
        return fd
    os.close(fd)
    raise VaultError(f"{path}: is empty", hint)


def has_sealed(vault: Vault) -> bool:
    """Whether something lies where the sealed vault belongs, good or bad."""
    return os.path.lexists(vault.sealed)


def digest_data(fd: int, size: int) -> bytes:
    """A digest of a file's size and data; holes are skipped, however large they are (lseek(2))."""
    digest = sha256(b"%d" % size)
    piece = memoryview(bytearray(min(1 << 18, size)))
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # there is no more data
        end = os.lseek(fd, start, os.SEEK_HOLE)
        digest.update(b" %d-%d:" % (start, end))
        while start < end:
            count = os.preadv(fd, [piece[: end - start]], start)
            if not count:
                break
            digest.update(piece[:count])
            start += count
    return bytes(digest.digest())


# How often gpg stretches a key, as the byte of RFC 4880, 3.7.1.3, that stands in the file: the most there is.
S2K_CODE = 0xFF
S2K_COUNT = (16 + (S2K_CODE & 15)) << ((S2K_CODE >> 4) + 6)


def is_native(start: bytes) -> bool:
    """Whether a file begins as ours do.

    RFC 4880: a symmetric-key packet of 13 bytes (8c 0d), version 4, AES-256 (09), iterated and
    salted S2K (03) with SHA-512 (0a), eight bytes of salt, the count, and then an integrity-protected
    data packet (d2).
    """
    return start[:6] == b"\x8c\x0d\x04\x09\x03\x0a" and start[14:16] == bytes([S2K_CODE, 0xD2])


def sealed_head(path: Path) -> bytes:
    """The first bytes of a sealed file, which tell its format; a fifo there must not block us."""
    with closing(open_sealed_file(path)) as fd:
        return os.pread(fd, 16, 0)


def digest_of_sealed(path: Path) -> str:
    """The digest of a sealed file."""
    with closing(open_sealed_file(path)) as fd:
        return digest_fd(fd)


def format_name(start: bytes) -> str:
    """`openpgp` or `go`, by the first 16 bytes."""
    if is_native(start):
        return "openpgp"
    return "go"


def gpg_argv(homedir: Path, *words: object) -> list[str]:
    """What every gpg call begins with, no keyring, no agent, no file of its own, and its words."""
    return [
        *("gpg", "--batch", "--no-options", "--no-tty", "--homedir", str(homedir)),
        *("--no-keyring", "--no-random-seed-file", "--no-autostart"),
        *("--pinentry-mode", "loopback", "--no-symkey-cache", *map(str, words)),
    ]


def encrypt_argv(homedir: Path, fd: object) -> list[str]:
    """gpg(1) that seals: AES-256, the slowest key stretching it has, no compression of its own."""
    return gpg_argv(
        *(homedir, "--passphrase-fd", fd, "--rfc4880", "--symmetric", "--cipher-algo", "AES256"),
        *("--s2k-mode", "3", "--s2k-digest-algo", "SHA512", "--s2k-count", S2K_COUNT),
        *("--compress-algo", "none"),
    )


def decrypt_argv(homedir: Path, fd: object, status_fd: object) -> list[str]:
    """gpg(1) that unseals."""
    return gpg_argv(homedir, "--passphrase-fd", fd, "--status-fd", status_fd, "--decrypt")


def pack_argv(root: Path, names_fd: object) -> list[str]:
    """tar(1) that packs the names of a list as they are (pax(5))."""
    return [
        *("tar", "--create", "--file=-", "--directory", str(root), "--format=posix"),
        *("--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime", "--sparse"),
        *("--no-recursion", "--null", "--verbatim-files-from", f"--files-from=/dev/fd/{names_fd}"),
    ]


def gpg_accepts(status: str) -> bool:
    """Whether gpg's status lines prove an intact message (GnuPG doc/DETAILS).

    Its exit status alone proves nothing: a cut file and a plain packet give 0 as well.
    """
    words = []
    for line in status.splitlines():
        parts = line.split()
        if line.startswith("[GNUPG:] ") and len(parts) > 1:
            words.append(parts[1])
    # One text, and all of it out of what was decrypted: what stands around that is an attacker's.
    frame = ("BEGIN_DECRYPTION", "PLAINTEXT", "END_DECRYPTION")
    if [word for word in words if word in frame] != list(frame):
        return False
    return "DECRYPTION_OKAY" in words and "GOODMDC" in words


# Go's sealed format, read and never written: salt[32] | nonce[12] | AES-256-GCM ciphertext | tag[16].
# `openssl enc` refuses GCM, so the same bytes are framed as a CMS message that exists only in a pipe.
# CMS wants the key wrapped for a recipient: ours has a public constant for a password, which protects
# nothing and need not, since whoever can read that pipe can read the vault.
GO_SALT = 32
GO_NONCE = 12
GO_TAG = 16
GO_ITERATIONS = 100_000
_CMS_PASSWORD = "tazpod-public-constant"
_CMS_SALT = bytes(16)
_CMS_ITERATIONS = 1000
_CMS_IV = bytes(16)
_CMS_DECRYPT_FAILED = 4  # openssl-cms(1), "EXIT CODES"


def open_go_vault(sealed: bytes, passphrase: bytes) -> bytes:
    """What Go TazPod sealed: a gzip'd tar.  The key is PBKDF2 (RFC 8018) over the passphrase's bytes."""
    if len(sealed) < GO_SALT + GO_NONCE + GO_TAG:
        raise VaultError("the sealed vault is cut short: it has no room for salt, nonce and tag")
    nonce = sealed[GO_SALT : GO_SALT + GO_NONCE]
    ciphertext = sealed[GO_SALT + GO_NONCE : -GO_TAG]
    return _cms_open(_go_key(sealed, passphrase), nonce, ciphertext, sealed[-GO_TAG:])


def _pbkdf2(passphrase: bytes, salt: bytes, iterations: int) -> bytes:
    import hashlib

    return hashlib.pbkdf2_hmac("sha256", passphrase, salt, iterations, 32)


def _go_key(sealed: bytes, passphrase: bytes) -> bytes:
    return _pbkdf2(passphrase, sealed[:GO_SALT], GO_ITERATIONS)


def cms_decrypt_argv() -> list[str]:
    """openssl-cms(1) that opens the message on its standard input."""
    return ["openssl", "cms", "-decrypt", "-binary", "-inform", "DER", "-pwri_password", _CMS_PASSWORD]


def cms_wrap_argv() -> list[str]:
    """openssl-enc(1) that does one pass of the wrapping."""
    kek = _pbkdf2(_CMS_PASSWORD.encode(), _CMS_SALT, _CMS_ITERATIONS).hex()
    return ["openssl", "enc", "-aes-256-cbc", "-nopad", "-K", kek, "-iv", _CMS_IV.hex()]


def _cms_open(key: bytes, nonce: bytes, ciphertext: bytes, tag: bytes) -> bytes:
    """The plaintext, once openssl has accepted the tag: it writes every byte *before* it checks."""
    done = act(cms_decrypt_argv(), _cms_message(_cms_wrap(key), nonce, ciphertext, tag))
    # A tag that does not fit is openssl's one silent failure: the whole text has come out, then status 4
    # with nothing from its error queue.  Whatever else goes wrong leaves an error line there.
    all_came_out = 0 < len(ciphertext) == len(done.out)
    if done.code == _CMS_DECRYPT_FAILED and (all_came_out or ":error:" not in done.err):
        raise WrongPassphrase("wrong passphrase, or the file is damaged")
    return _openssl_output(done, len(ciphertext))


def _cms_message(wrapped: bytes, nonce: bytes, ciphertext: bytes, tag: bytes) -> bytes:
    """A CMS AuthEnvelopedData (RFC 5083) with AES-GCM (RFC 5084) for one PasswordRecipientInfo (RFC 3211)."""
    hmac_sha256 = _seq(_oid("1.2.840.113549.2.9"), _der(0x05))
    stretch = _seq(_octets(_CMS_SALT), _int(_CMS_ITERATIONS.to_bytes(2, "big")), hmac_sha256)
    pbkdf2 = _der(0xA0, _oid("1.2.840.113549.1.5.12"), stretch)  # RFC 8018, A.2
    aes256_cbc = _seq(_oid("2.16.840.1.101.3.4.1.42"), _octets(_CMS_IV))
    pwri_kek = _seq(_oid("1.2.840.113549.1.9.16.3.9"), aes256_cbc)
    recipients = _der(0x31, _der(0xA3, _int(bytes([0])), pbkdf2, pwri_kek, _octets(wrapped)))
    aes256_gcm = _seq(_oid("2.16.840.1.101.3.4.1.46"), _seq(_octets(nonce), _int(bytes([len(tag)]))))
    message = _seq(_oid("1.2.840.113549.1.7.1"), aes256_gcm, _der(0x80, ciphertext))
    message = _seq(_int(bytes([0])), recipients, message, _octets(tag))
    return _seq(_oid("1.2.840.113549.1.9.16.1.23"), _der(0xA0, message))


def _cms_wrap(key: bytes) -> bytes:
    """RFC 3211, 2.3.1: length, check bytes, key and padding through CBC, and the result through it again."""
    block = bytes([len(key), *(byte ^ 0xFF for byte in key[:3])]) + key + os.urandom(12)
    once = _cms_cbc(block)
    # The second pass goes on from the last block of the first.  As an IV that block would stand in argv: the
    # block that encrypts to it goes in front instead, and its ciphertext is dropped.  So argv is constant.
    return _cms_cbc(bytes(a ^ b for a, b in zip(block[-16:], once[-32:-16])) + once)[16:]


def _cms_cbc(data: bytes) -> bytes:
    return _openssl_output(act(cms_wrap_argv(), data), len(data))


def _openssl_output(done: Result, size: int) -> bytes:
    """What openssl wrote, only if it exited 0 and wrote all of it; else its first error line."""
    if OPTIONS.dry_run:
        return bytes(size)
    if done.code == 0 and len(done.out) == size:
        return done.out
    lines = done.err.strip().split("\n")
    line = next((line for line in lines if ":error:" in line), lines[0] or "it said nothing")
    raise VaultError(f"openssl failed (status {done.code}): {line}")


def _der(tag: int, *parts: bytes) -> bytes:
    """One ASN.1 element in DER (X.690): tag, length in its shortest form, the parts as content."""
    size = sum(map(len, parts))
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    if size < 0x80:
        length = bytes([size])
    else:
        length = bytes([0x80 | len(digits)]) + digits
    return b"".join((bytes([tag]), length, *parts))


def _oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER: each arc in base 128, the top bit set on all its bytes but the last."""
    first, second, *rest = map(int, dotted.split("."))
    body = b""
    for arc in (40 * first + second, *rest):
        body += bytes([arc >> shift & 0x7F | 0x80 for shift in (21, 14, 7) if arc >> shift] + [arc & 0x7F])
    return _der(0x06, body)


_seq = partial(_der, 0x30)
_octets = partial(_der, 0x04)
_int = partial(_der, 0x02)


def unpack_argv(root: object) -> list[str]:
    """tar(1) that unpacks an unsealed vault and names what it unpacked.

    It reads on behind the end mark: else what stands there is read or breaks the pipe, as it happens.
    """
    options = ("--preserve-permissions", "--no-same-owner", "--warning=no-timestamp", "--ignore-zeros")
    return ["tar", "--extract", "--verbose", "--quoting-style=escape", *options, "--directory", str(root)]


def compare_argv(root: Path) -> list[str]:
    """tar(1) that compares an unsealed vault with the open one."""
    return ["tar", "--compare", "--verbose", "--quoting-style=escape", "--directory", str(root)]


def unseal(sealed: int, passphrase: bytes, consumer: Sequence[str], pass_fds: tuple[int, ...] = ()) -> bytes:
    """Decrypt a sealed file into a tar command, which inherits `pass_fds`; give what tar printed.

    What tar did counts only when this returns: on WrongPassphrase or VaultError the caller
    throws it away whole.  In a dry run, tar says nothing of its own.
    """
    start = os.pread(sealed, 16, 0)
    os.lseek(sealed, 0, os.SEEK_SET)
    if start and not is_native(start):
        return _unseal_go(sealed, passphrase, consumer, pass_fds)
    with closing(memory_file()) as output, closing(memory_file()) as status_fd:
        with empty_folder("tazpod-gpg-") as homedir, secret_fd(passphrase) as fd:
            decrypt = Stage(decrypt_argv(homedir, fd, status_fd), (fd, status_fd))
            stages = [decrypt, Stage([*consumer, "--file=-"], pass_fds)]
            results = stream(stages, sealed, output)
        status = read_back(status_fd).decode(errors="replace")
        gpg_failed = results[0].code > 0 and "Broken pipe" not in results[0].err
        if gpg_failed and "BEGIN_DECRYPTION" in status and " PLAINTEXT " not in status:
            raise WrongPassphrase("wrong passphrase, or the sealed file is damaged")
        if gpg_failed:
            raise VaultError(f"the sealed file is damaged, or cannot be read: {results[0].reason}")
        check_tar(stages, results)
        if not OPTIONS.dry_run and not gpg_accepts(status):
            raise VaultError("the sealed file is damaged: its integrity check failed")
        return read_back(output)


def check_tar(stages: Sequence[Stage], results: Sequence[Result]) -> None:
    """Judge a pipeline that ends in tar: any complaint of tar's is a refusal."""
    if "No space left on device" in results[-1].err or ": Wrote only " in results[-1].err:
        raise VaultError("the vault is larger than the RAM it is given", f"raise vault.size in {CONFIG_PATH}")
    failure = first_failure(stages, results)
    if failure or results[-1].err.strip():
        raise VaultError(f"the vault could not be read: {failure or results[-1].reason}")


def _unseal_go(sealed: int, passphrase: bytes, consumer: Sequence[str], pass_fds: tuple[int, ...]) -> bytes:
    archive = memory_file(open_go_vault(read_back(sealed), passphrase))
    with closing(archive), closing(memory_file()) as output:
        stages = [Stage([*consumer, "--gzip", "--file=-"], pass_fds)]
        check_tar(stages, stream(stages, archive, output))
        return read_back(output)


# -- the open tree


class Tree(NamedTuple):
    """What lies in an open vault: a digest of all of it, the names, bytes, what is left out."""

    digest: str
    names: tuple[bytes, ...]
    files: int
    size: int
    largest: tuple[int, str]
    left_out: tuple[str, ...]


def unreadable(path: str, error: OSError) -> VaultError:
    """The error for what lies in the vault and cannot be read, with the command that helps."""
    hint = ""
    if error.errno == errno.EACCES:
        hint = f"chmod u+rX {quoted(path)}"
        if os.lstat(path).st_uid != os.geteuid():
            hint = f"sudo chown -h {os.geteuid()} {quoted(path)}; {hint}"
    return VaultError(f"{path}: {error.strerror}", hint)


def has_attributes(path: bytes) -> bool:
    """Whether a file has attributes of its user's, capabilities, or a list of who may do what.

    The archive keeps none of them (xattr(7), capabilities(7), acl(5)).
    """
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:  # a file system without them
        return False
    return any(name.startswith(("user.", "system.posix_acl_", "security.capability")) for name in names)


class Walk:
    """What `survey` gathers on its way."""

    def __init__(self, root: Path) -> None:
        self.base = os.fsencode(root)
        self.digest = sha256()
        self.names: list[bytes] = []
        self.left_out: list[str] = []
        self.first_name: dict[int, bytes] = {}
        self.pending = [b""]  # folders to look into
        self.files = 0
        self.size = 0
        self.largest = (0, "")

    def look_into(self, folder: bytes) -> None:
        """Take in what lies in one folder."""
        path = os.path.join(self.base, folder)
        try:
            children = sorted(os.listdir(path))
        except OSError as error:
            raise unreadable(os.fsdecode(path), error) from None
        for child in children:
            name = os.path.join(folder, child)
            if re.fullmatch(RESERVED, name):
                continue
            try:
                self.take_in(name)
            except OSError as error:
                raise unreadable(os.fsdecode(os.path.join(self.base, name)), error) from None

    def take_in(self, name: bytes) -> None:
        """Take in a file, a folder or a link: its name, kind and mode, time, and content."""
        path = os.path.join(self.base, name)
        info = os.lstat(path)
        kind = stat.S_IFMT(info.st_mode)
        content = b""
        if kind == stat.S_IFREG:
            content = self.content_of(path, name, info)
        elif kind == stat.S_IFLNK:
            content = os.readlink(path)
        elif kind == stat.S_IFDIR:
            self.pending.append(name)
        else:
            self.left_out.append(f"{os.fsdecode(name)}: is not a file, folder or link, and is left out")
            return
        if has_attributes(path):
            self.left_out.append(f"{os.fsdecode(name)}: its extended attributes are left out")
        self.names.append(name)
        for part in (name, b"%o %d" % (info.st_mode, info.st_mtime_ns), content):
            self.digest.update(b"%d:" % len(part) + part)

    def content_of(self, path: bytes, name: bytes, info: os.stat_result) -> bytes:
        """A digest of a file; of one with several names also the first of them."""
        self.files += 1
        self.size += info.st_size
        self.largest = max(self.largest, (info.st_size, os.fsdecode(name)))
        # Not to wait, should it be a fifo by now.
        with closing(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)) as fd:
            content = digest_data(fd, info.st_size)
        if info.st_nlink > 1:
            content += self.first_name.setdefault(info.st_ino, name)
        return content


def survey(root: Path) -> Tree:
    """Walk the open vault.  Every content is hashed: a change through mmap(2) leaves no time.

    Raises VaultError with the name of what cannot be read.
    """
    walk = Walk(root)
    if has_attributes(walk.base):
        walk.left_out.append("extended attributes of the vault's own folder are left out")
    try:
        while walk.pending:
            walk.look_into(walk.pending.pop())
    except FileNotFoundError as error:
        what = f"{error.filename}: went away while the vault was read"
        raise VaultError(what, "something moves files in it: again, when that has ended") from None
    # In the order of tar, which sets a folder's time once, when it leaves it.
    names = sorted(walk.names, key=lambda name: name.split(b"/"))
    digest = str(walk.digest.hexdigest())
    return Tree(digest, tuple(names), walk.files, walk.size, walk.largest, tuple(walk.left_out))


def read_state(root: Path) -> dict[str, str]:
    """What is known of an open vault, or nothing: the digests `tree` and `sealed` of the last save.

    `stamp` is of that sealed file, and `format` as `format_name` has it.
    While a save replaces the sealed file, `next_tree` and `next_sealed` are those that come into force by it.
    """
    return {str(key): str(value) for key, value in read_json(root / STATE_FILE).items()}


def write_state(root: Path, state: Mapping[str, str]) -> None:
    """Remember in RAM what was sealed last: in place and never longer, for a full tmpfs has no room."""
    write_in_place(root / STATE_FILE, json.dumps(dict(state)).encode().ljust(512))


def settled_state(vault: Vault, on_disk: str) -> dict[str, str]:
    """What is known of the open vault.

    A save that was killed just after it had replaced the sealed file has left that as `next_...`.
    """
    state = read_state(vault.mount)
    if on_disk and on_disk == state.get("next_sealed"):
        state = {"tree": state.get("next_tree", ""), "sealed": on_disk, "format": "openpgp"}
        write_state(vault.mount, state)
    return state


def stamp_of(info: os.stat_result) -> str:
    """What tells cheaply that a sealed file may be another than before."""
    return f"{info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"


def is_unsaved(root: Path) -> bool:
    """Whether an open vault, in its place or on TRANSIT, is other than what was sealed last."""
    return survey(root).digest != read_state(root).get("tree")


def is_unsealed(vault: Vault) -> bool:
    """Whether no sealed file here holds the open vault: it has changed, or that file has."""
    state = read_state(vault.mount)
    tree = survey(vault.mount)
    with contextlib.suppress(OSError):
        if tree.digest == state.get("tree") and stamp_of(look_at(vault.sealed)) == state.get("stamp"):
            return False
    return not is_sealed(vault, tree, state, sealed_digest(vault))


def settled_passphrase(vault: Vault, on_disk: str) -> bytes:
    """The passphrase of the open vault, from RAM.

    A `passwd` that was killed is settled here: its passphrase is in force if, and only if, the
    file that it sealed is the one on disk.
    """
    upcoming = vault.mount / NEXT_FILE
    with contextlib.suppress(FileNotFoundError):
        digest, _, passphrase = read_shared(upcoming).partition(b"\n")
        if digest == on_disk.encode():
            write_whole(vault.mount / PASSPHRASE_FILE, passphrase)
        remove_file(upcoming)
    try:
        data = read_shared(vault.mount / PASSPHRASE_FILE)
    except OSError:
        raise VaultError(
            f"{vault.mount}: holds no finished unlock, so it cannot be saved",
            "tazpod lock --discard, then unlock again",
        ) from None
    return check_passphrase(data.removesuffix(b"\n"))


@contextlib.contextmanager
def writable_or_not() -> Iterator[None]:
    """On a disk that went read-only, go without: a vault can be opened there, read, and locked again."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EROFS:
            raise


# -- the vault's words


def unlock(vault: Vault, passphrase: bytes, *, new: bool = True) -> Tree:
    """Unseal into a fresh tmpfs and put it in its place; without a sealed file, start empty if `new`.

    All or nothing: on any failure, Ctrl-C included, the tmpfs is gone again.
    """
    with exclusive(vault):
        if is_open(vault):
            if passphrase != settled_passphrase(vault, sealed_digest(vault)):
                raise VaultError(
                    "the vault was opened meanwhile, under another passphrase than this one",
                    "it is open; the passphrase in force is the one that was typed there",
                )
            return survey(vault.mount)
        if not new and not has_sealed(vault):
            raise VaultError(f"{vault.sealed}: is not there any more", "tazpod status")
        destroy_transit(vault)
        try:
            must_be_empty(vault.mount)
            with closing(mount_tmpfs(vault)) as ram:
                tree = unseal_present(vault, passphrase, ram)
                with writable_or_not():
                    write_whole(vault.marker, b"")
                bind_into_home(vault)
                move_mount(vault.transit, vault.mount)
                if _device_of(vault.mount) != os.fstat(ram).st_dev:
                    raise VaultError(f"{vault.mount}: another mount came between", "try again")
        except BaseException:
            with uninterrupted():
                destroy_vault(vault)
            raise
        with writable_or_not():
            prune_history(vault)  # a pull forgets nothing for a vault that nobody has opened yet
        return tree


def unseal_present(vault: Vault, passphrase: bytes, ram: int) -> Tree:
    """Unpack the sealed file; where there is none, an empty vault begins."""
    if not has_sealed(vault):
        return unpack(vault, None, passphrase, ram)[0]
    with closing(open_sealed_file(vault.sealed)) as sealed:
        return unpack(vault, sealed, passphrase, ram)[0]


def unpack(vault: Vault, sealed: int | None, passphrase: bytes, ram: int) -> tuple[Tree, int]:
    """Unseal a file into the folder that a descriptor shows, and remember there what is needed to save.

    The folder is never named by its path: if the tmpfs were taken away from TRANSIT, a tar that outlives
    this process would write to a disk.  Gives what lies there, and the number of entries in the archive,
    where a name that is there twice counts twice, and our own names count as well.
    """
    root = Path(f"/dev/fd/{ram}")
    digest = ""
    listing = b""
    if sealed is not None:
        listing = unseal(sealed, passphrase, unpack_argv(root), (ram,))
        if not listing and not OPTIONS.dry_run:
            raise VaultError("the vault could not be read: tar found nothing in it")
        digest = digest_fd(sealed)
    for name in (PASSPHRASE_FILE, NEXT_FILE, STATE_FILE):  # Go packed its own
        remove_file(root / name)
    for name in vault.binds:
        make_folders(root, name)
    set_mode(ram, 0o700)
    tree = survey(root)
    write_whole(root / PASSPHRASE_FILE, passphrase)
    state = {}
    if sealed is not None:
        state = {"tree": tree.digest, "sealed": digest, "stamp": stamp_of(os.fstat(sealed))}
        state["format"] = format_name(os.pread(sealed, 16, 0))
    write_state(root, state)
    return tree, len(listing.splitlines())


def login_in_ram(vault: Vault) -> None:
    """Before the vault is open, ~/.aws is RAM too: a login leaves no token on a disk."""
    if mounted_at(vault.home / ".aws") is None:
        os.close(mount_ram(vault.home / ".aws", "1m", LOGIN_RAM))


def guard_lock(vault: Vault) -> Path:
    """The file that the guard of a vault's project holds."""
    return vault.folder.parent / "run" / GUARD_LOCK


def is_guarded(vault: Vault) -> bool:
    """Whether the vault is marked as open, and a guard of its project lives, in whatever container."""
    return vault.marker.exists() and is_alive(guard_lock(vault))


def is_guarded_elsewhere(vault: Vault) -> bool:
    """In a container: whether that guard lives where nobody here can see it.

    The kernel lists only the locks whose holder the reader may see (proc_locks(5)).
    """
    if not is_guarded(vault):
        return False
    inode = guard_lock(vault).stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        if re.search(rf"\bFLOCK\b.* [0-9a-f]+:[0-9a-f]+:{inode} ", line):
            return False
    return True


def refuse_not_open(vault: Vault, what: str) -> None:
    """An error for a vault that is not open, `what` says for which work."""
    if is_open(vault):
        return
    if mounted_at(vault.transit):
        raise VaultError("the vault is neither open nor locked: its secrets are in RAM", "tazpod lock")
    refuse_open_elsewhere(vault)
    raise NothingOpen(f"the vault is locked: {what}", "tazpod unlock")


def tell_lost(vault: Vault) -> None:
    """Of a vault that was open, say once that its memory is not there any more: the container stopped, say.

    While a guard of the project is at work, only the container that it is in can tell; another container
    gets an error, for the vault may be open there.
    """
    if not in_pod() and is_guarded(vault):
        return
    refuse_open_elsewhere(vault)
    with contextlib.suppress(OSError):
        when = utc(look_at(vault.marker).st_mtime)
        warn(f"the vault was open, and its memory is not there any more; what changed after {when} is lost")
        remove_file(vault.marker)


@contextlib.contextmanager
def passing_ram(vault: Vault) -> Iterator[int]:
    """A fresh tmpfs on TRANSIT, which is destroyed at the end."""
    destroy_transit(vault)
    try:
        with closing(mount_tmpfs(vault)) as ram:
            yield ram
    finally:
        with uninterrupted():
            destroy_transit(vault)


def prove_ram(vault: Vault) -> None:
    """Find out before the passphrase is asked for whether there is RAM to open the vault into."""
    with exclusive(vault):
        if is_open(vault):
            return
        tell_lost(vault)
        must_be_empty(vault.mount)
        with passing_ram(vault):
            pass


def prove_opens(vault: Vault, sealed: int, passphrase: bytes) -> int:
    """Do with a sealed file what an unlock does, in RAM of its own; the number of its entries.

    So `unlock`, `verify` and `restore` have one judgement of what opens.
    """
    with passing_ram(vault) as ram:
        return unpack(vault, sealed, passphrase, ram)[1]


def bind_into_home(vault: Vault) -> None:
    """Show the vault's own folders in the home, so that no token of the AWS CLI touches a disk.

    That is done while the vault is on TRANSIT: so one in its place has all of its folders shown.
    """
    for name in vault.binds:
        source = vault.transit / name
        target = vault.home / name
        stays = f"~/{name} stays on the container's disk"
        if not make_folders(vault.transit, name):
            warn(f"{vault.mount / name}: is not a folder; {stays}")
            continue
        if not make_folders(vault.home, name):
            warn(f"~/{name}: a file or link is in the way; {stays}: lock, remove it, unlock")
            continue
        mount = mounted_at(target)
        if name == ".aws" and mount and mount.kind == "tmpfs":  # the RAM of a login before this unlock
            copy_tree(target, source)
            unmount(target)
        if mounted_at(target) is not None:
            warn(f"~/{name}: something is mounted there, and stays")
            continue
        if target.is_dir() and any(target.iterdir()):
            warn(
                f"~/{name}: what is on the container's disk there is hidden while the vault is open;"
                " to put it into the vault: lock, move it away, unlock, move it back"
            )
        result = change_mounts(["mount", "--bind", str(source), str(target)])
        if mounted_at(target) is None:
            warn(f"{target}: the vault's {name} could not be mounted there: {result.reason}")


def seal(tree: Tree, root: Path, passphrase: bytes, target: int) -> None:
    """Pack a tree and seal it into a descriptor (tar(1), pax(5), gpg(1))."""
    listed = b"".join(b"./" + name + b"\0" for name in tree.names)
    with closing(memory_file(listed)) as names, closing(memory_file()) as nothing:
        with empty_folder("tazpod-gpg-") as homedir, secret_fd(passphrase) as fd:
            stages = [Stage(pack_argv(root, names), (names,)), Stage(encrypt_argv(homedir, fd), (fd,))]
            failure = first_failure(stages, stream(stages, nothing, target))
        if failure:
            raise VaultError(f"the vault could not be sealed: {failure}")


def prove_equal(tree: Tree, root: Path, passphrase: bytes, sealed: int) -> None:
    """Open what was just sealed and compare it, entry by entry, with the tree."""
    try:
        listed = unseal(sealed, passphrase, compare_argv(root))
    except VaultError as error:
        raise VaultError(
            f"the sealed copy is not equal to the open vault: {error}",
            "the old sealed vault is untouched; if something writes into the vault, try again",
        ) from None
    if len(listed.splitlines()) != len(tree.names) and not OPTIONS.dry_run:
        raise VaultError("the sealed copy does not hold every file")


def save(
    vault: Vault,
    *,
    force: bool = False,
    passphrase: bytes | None = None,
    agree: Callable[[], None] | None = None,
) -> Tree | None:
    """Seal the open vault; None when nothing changed since the last time.

    The sealed file is replaced only by one that was opened again and found equal to the open
    tree; the one before it goes to the history.  With `passphrase` it is sealed under that one
    from now on.  `agree` is called before a file that Go TazPod wrote is replaced, and may raise.
    """
    if agree and replaces_go(vault, always=force or passphrase is not None):
        agree()  # the lock is not held: whoever is asked may never answer
    with exclusive(vault):
        refuse_not_open(vault, "there is nothing to save")
        on_disk = sealed_digest(vault)
        current = settled_passphrase(vault, on_disk)
        state = settled_state(vault, on_disk)
        make_folder(vault.mount / ".aws")  # an archive of nothing is one that nobody read
        tree = survey(vault.mount)
        for text in tree.left_out:
            warn(text)
        if not force and passphrase is None and is_sealed(vault, tree, state, on_disk):
            if on_disk != state.get("sealed"):
                warn("the sealed vault was replaced by another; this one is in the history")
            return None
        must_fit(vault, tree)
        return replace_sealed(vault, tree, state, on_disk, current=current, upcoming=passphrase)


def replace_sealed(
    vault: Vault,
    tree: Tree,
    state: Mapping[str, str],
    on_disk: str,
    *,
    current: bytes,
    upcoming: bytes | None,
) -> Tree:
    """Seal the open vault, under an upcoming passphrase if there is one, and put that in its place.

    A kill before the renaming leaves the old file in force, and a temporary one that the next word takes
    away.  Behind it the new file is in force, and what was written before tells so to the next save:
    `settled_passphrase` by NEXT_FILE, `settled_state` by its `next_...`.  The mark then has the time of
    an earlier save, and the history one version too many; the next save sets both right.
    """
    temporary = temporary_beside(vault.sealed)
    fd = create_file(temporary)
    try:
        tree = seal_and_prove(vault, tree, upcoming or current, fd)
        digest = digest_fd(fd)
        if on_disk and on_disk != state.get("sealed", on_disk):
            warn("another version was sealed since this one was opened; it is in the history")
        keep_version(vault)
        if upcoming is not None:
            write_whole(vault.mount / NEXT_FILE, digest.encode() + b"\n" + upcoming)
        write_state(vault.mount, {**state, "next_tree": tree.digest, "next_sealed": digest})
        rename_file(temporary, SEALED_NAME)
        sync_folder(vault.folder)
        stamp = stamp_of(os.fstat(fd))
    except BaseException:
        with contextlib.suppress(OSError):
            remove_file(temporary)
        raise
    finally:
        os.close(fd)
    settled_passphrase(vault, digest)  # the upcoming one is in force now
    known = {"tree": tree.digest, "sealed": digest, "format": "openpgp", "stamp": stamp}
    write_state(vault.mount, known)
    write_whole(vault.marker, b"")
    prune_history(vault)
    return tree


def is_sealed(vault: Vault, tree: Tree, state: Mapping[str, str], on_disk: str) -> bool:
    """Whether a sealed file here, the present one or a version of the history, holds this very tree."""
    if not on_disk or tree.digest != state.get("tree"):
        return False
    if on_disk == state.get("sealed"):
        return True
    return is_version(vault, state.get("sealed", ""))


def must_fit(vault: Vault, tree: Tree) -> None:
    """Refuse a vault that holes make so large that to compare it with its sealed copy would take for ever."""
    room = os.statvfs(vault.mount)
    most = room.f_blocks * room.f_frsize or bytes_of(vault.size)  # root may have taken the limit away
    limit = SPARSE_LIMIT * most
    if tree.size > limit:
        size, name = tree.largest
        raise VaultError(
            f"{vault.mount / name}: seems to be {size >> 20} MiB large, and all together {tree.size >> 20}; "
            f"at most {limit >> 20} can be saved",
            "holes count: make it smaller, or move it out of the vault",
        )


def replaces_go(vault: Vault, always: bool) -> bool:
    """Whether a save would replace a file that Go TazPod wrote; `always`: also when nothing changed."""
    return is_open(vault) and go_is_sealed(vault) and (always or is_unsealed(vault))


def go_is_sealed(vault: Vault) -> bool:
    """Whether the open vault is one that Go TazPod sealed: not what lies in the place of a file of ours."""
    if not sealed_digest(vault) or sealed_is_native(vault):
        return False
    return read_state(vault.mount).get("format") != "openpgp"


def seal_and_prove(vault: Vault, tree: Tree, passphrase: bytes, fd: int) -> Tree:
    """Seal until the sealed copy and the tree agree: somebody may be writing into it."""
    for attempt in range(ATTEMPTS):
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            with waiting(partial("sealing {}".format, bytes_text(tree.size))):
                seal(tree, vault.mount, passphrase, fd)
                os.fsync(fd)
                prove_equal(tree, vault.mount, passphrase, fd)
        except VaultError:
            again = survey(vault.mount)
            if again.digest == tree.digest or attempt == ATTEMPTS - 1:
                raise
            tree = again
            continue
        return tree
    raise AssertionError("unreachable")


def sync_folder(folder: Path) -> None:
    """fsync(2) of a folder, so that a rename in it survives a power cut."""
    with closing(os.open(folder, _FOLDER)) as fd:
        os.fsync(fd)


def utc(moment: float) -> str:
    """A time for people, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))


def sealed_digest(vault: Vault) -> str:
    """The digest of the sealed file; '' when there is none, or an empty one."""
    with contextlib.suppress(FileNotFoundError):
        info = os.lstat(vault.sealed)
        if stat.S_ISREG(info.st_mode) and info.st_size == 0:
            return ""
        return digest_of_sealed(vault.sealed)
    return ""


def sealed_is_native(vault: Vault) -> bool:
    """Whether the sealed file has our own format."""
    return is_native(sealed_head(vault.sealed))


def add_version(vault: Vault, path: Path) -> None:
    """Put a sealed file into the history, under the time when it was sealed."""
    make_folder(vault.history)
    if OPTIONS.dry_run and not path.exists():
        return  # it would have been fetched; its name is its time, which nobody knows yet
    present = os.lstat(path)
    if any(os.path.samestat(version.lstat(), present) for version in versions(vault)):
        return  # a save was killed before it came to the replacing
    stem = time.strftime("vault-%Y%m%dT%H%M%S", time.gmtime(present.st_mtime))
    name = f"{stem}.tar.aes"
    number = 1
    while (vault.history / name).exists():
        number += 1
        name = f"{stem}-{number}.tar.aes"
    names = [version.name for version in versions(vault)]
    write_whole(vault.order, "\n".join((*names, name)).encode())
    link_or_copy(path, vault.history / name)


def link_or_copy(path: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system knows no hard links."""
    try:
        second_name(path, target)
    except FileExistsError:
        return
    except OSError:
        with closing(open_sealed_file(path)) as fd:
            write_whole(target, read_back(fd))
    if target.parent.is_dir():
        sync_folder(target.parent)


def keep_version(vault: Vault) -> None:
    """Put the present sealed file into the history; a Go one also beside it, for Go TazPod."""
    if not sealed_digest(vault):
        return
    add_version(vault, vault.sealed)
    if go_is_sealed(vault):
        link_or_copy(vault.sealed, vault.folder / GO_NAME)


def versions(vault: Vault) -> list[Path]:
    """The versions in the history in the order in which they were added, whatever the clock said.

    Those of which that is not known are the oldest, by the time when they were sealed.
    """
    try:
        names = read_shared(vault.order).decode().split("\n")
    except (OSError, UnicodeDecodeError):
        names = []
    places = {name: place for place, name in enumerate(names)}
    return sorted(
        vault.history.glob("vault-*.tar.aes"),
        key=lambda p: (places.get(p.name, -1), p.lstat().st_mtime_ns, len(p.name), p.name),
    )


def is_version(vault: Vault, digest: str) -> bool:
    """Whether the history holds a file with this digest; what cannot be read there is no version."""
    for path in versions(vault):
        with contextlib.suppress(VaultError, OSError):
            if digest_of_sealed(path) == digest:
                return True
    return False


def kept_files(vault: Vault) -> dict[str, Path]:
    """What is kept beside the sealed file, by name: the versions, and the file that Go TazPod wrote."""
    found = {path.name[: -len(".tar.aes")]: path for path in versions(vault)}
    if os.path.lexists(vault.folder / GO_NAME):
        found[GO_NAME] = vault.folder / GO_NAME
    return found


def prune_history(vault: Vault) -> None:
    """Forget all but the `keep` versions that were added last; never the one that a save has just added."""
    for path in versions(vault)[: -max(1, vault.keep)]:
        remove_file(path)


def verify(vault: Vault, path: Path, passphrase: bytes) -> int:
    """Prove that a sealed file opens; the number of its entries."""
    with exclusive(vault), closing(open_sealed_file(path)) as fd:
        return prove_opens(vault, fd, passphrase)


def restore(vault: Vault, version: Path, passphrase: bytes) -> None:
    """Make a version of the history the sealed vault, after proving that it opens."""
    with exclusive(vault):
        if is_open(vault):
            raise VaultError("the vault is open", "tazpod lock, then restore")
        with closing(open_sealed_file(version)) as fd:
            prove_opens(vault, fd, passphrase)
            data = read_back(fd)
        keep_version(vault)
        write_whole(vault.sealed, data)
        sync_folder(vault.folder)


def lock(
    vault: Vault, *, saved: bool = False, wanted: Callable[[], object] | None = None
) -> list[str] | None:
    """Take the open vault away, and a login that was never carried into it.

    Gives the processes that still held something in the vault; None when it stays open.  It does so when
    `wanted` says that somebody needs it, or, with `saved`, when it has changed since the save.  Both are
    asked when the vault is set aside: what was written before is seen, and whoever comes later finds it
    locked, or cannot write.  Whoever can all the same, since it did not freeze, is among those processes.
    """
    writers: dict[int, str] = {}
    with exclusive(vault):
        if is_open(vault):
            frozen = set_aside(vault)
            try:
                keep = bool(wanted and wanted())
                if saved and not OPTIONS.dry_run:  # which has not moved it, nor saved it before
                    keep = keep or is_unsaved(vault.transit)
                    if not keep and not frozen:
                        writers = shut_off(vault)
                        keep = is_unsaved(vault.transit)
            except BaseException:
                with uninterrupted():
                    put_back(vault)
                raise
            if keep:
                put_back(vault)
                return None
        else:
            tell_lost(vault)
        holders = list(dict.fromkeys((*list_holders(writers), *destroy_vault(vault))))
        mount = mounted_at(vault.home / ".aws")
        if mount and mount.kind == "tmpfs":
            unmount(vault.home / ".aws")
        return holders


def destroy_vault(vault: Vault) -> list[str]:
    """Destroy an open vault, or what a killed unlock or lock left of one; for who holds the lock."""
    if is_open(vault):
        set_aside(vault)
    with writable_or_not():
        remove_file(vault.marker)
    return destroy_transit(vault)


# ── 7. storage ────────────────────────────────────────────────────────────────────────────
#
# `aws s3api`, in the pod.  A push says which version it replaces (If-Match, RFC 9110 section
# 13.1), so two machines never overwrite each other.

# Versions that one push takes out of the history there, whoever has put how many in; it adds one itself.
PRUNED_AT_ONCE = 2
KEY_HINT = "write the key of AWS into it, or take it away"
KEYS_PROFILE = "tazpod-vault-keys"  # the name under which aws sees the keys of an open vault
CALL_LIMIT = 90.0  # seconds for one call of aws, its own retries included
READ_LIMIT = 20.0  # seconds of silence before aws gives up, and tries again
TRANSFER_LIMIT = 900.0  # for one that carries the vault, over a slow line
ABSENT_CODES = ("404", "NoSuchKey", "NoSuchBucket", "NotFound")
LOOKING = ("head-object", "list-objects-v2")  # what changes nothing, neither there nor here
CONFLICT_CODES = ("412", "409", "PreconditionFailed", "ConditionalRequestConflict")
LOGIN_HINT = "tazpod login"
STORAGE_HINTS = {  # by the code of the service's error
    "NoSuchBucket": "tazpod setup-storage makes the bucket",
    "AccessDenied": "may this login use the bucket? aws_sso in the config says which it is",
    "403": "may this login use the bucket? aws_sso in the config says which it is",
}
REDIRECT_CODES = ("301", "307", "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed")
ELSEWHERE_HINT = "is aws_sso.region the bucket's, and aws_sso.endpoint_url the storage's? tazpod config"
LOGIN_CODES = ("ExpiredToken", "ExpiredTokenException", "InvalidToken", "UnauthorizedException")
LOGIN_SIGNS = (
    *("sso session", "token has expired", "error loading sso token", "unable to locate credentials"),
    "the config profile",  # could not be found: there was no login yet
)
UNKNOWN_OPTIONS = "Unknown options"  # so says aws itself, when it is too old for one

# What the storage says, and what remote.json says (a container can write that), is believed only in
# these forms.
ETAG = r'(?:W/)?"[!#-~]{1,200}"'
DIGEST = r"[0-9a-f]{64}"
PUSH_ID = r"[0-9a-f]{32}"
MOMENT = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:Z|[+-][0-9]{2}:[0-9]{2})"
VERSION_NAME = r"vault-[0-9]{8}T[0-9]{6}(?:-[0-9]{1,9})?"
LARGEST = 1 << 50  # bytes; more than any storage takes as one object

# The settings that our calls of aws obey.  There are others that name a program to run, a file whose
# content aws sends away, or another server; .tazpod/.aws/config comes with a clone of the project.
AWS_SETTINGS = (
    *("region", "output", "s3", "retry_mode", "max_attempts", "defaults_mode", "parameter_validation"),
    *("sso_session", "sso_start_url", "sso_region", "sso_account_id", "sso_role_name"),
    *("sso_registration_scopes", "role_arn", "source_profile", "role_session_name", "external_id"),
    *("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "duration_seconds"),
    *("use_fips_endpoint", "use_dualstack_endpoint", "sts_regional_endpoints"),
    *("request_checksum_calculation", "response_checksum_validation"),
)


class StorageError(TazpodError):
    """A call of aws failed; `code` is the service's own word for it, '' when it never answered."""

    def __init__(self, message: str, hint: str = "", code: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


class Remote(NamedTuple):
    """An object in the storage: its etag and size, the SHA-256 and the push that made it."""

    etag: str
    size: int
    digest: str
    push: str
    modified: str
    project: str = ""  # whose vault it is, as far as it says so


class Storage(NamedTuple):
    """Where the vault's copies live, and with which keys (empty: those of the login) to get there."""

    bucket: str
    region: str
    profile: str
    endpoint: str = ""
    key_id: str = ""
    secret_key: str = ""
    limit: float = 0.0  # seconds for a call, when it is to be less than usual
    prefix: str = DEFAULT_PREFIX
    project: str = ""  # of what is put there

    @property
    def latest(self) -> str:
        """The key of the newest vault."""
        return f"{self.prefix}/{SEALED_NAME}"

    @property
    def history(self) -> str:
        """What the keys of the versions begin with."""
        return f"{self.prefix}/history/"


# -- how aws is called


def aws_config_file() -> Path:
    """The file with the profiles of the AWS CLI, in the project unless the environment says otherwise."""
    return Path(os.environ.get("AWS_CONFIG_FILE") or POD_AWS_CONFIG)


def kind_of_section(section: str) -> str | None:
    """What a section of a file of settings for aws is of, by its first word; None for one that misleads.

    Of two words, aws takes the first for `profile`, say, when it only begins so.
    """
    words = [""]
    with contextlib.suppress(ValueError):  # a quote that never ends: aws passes over it
        words = shlex.split(section) or words
    for known in ("profile", "sso-session", "services"):
        if len(words) == 2 and words[0].startswith(known) and words[0] != known:
            return None
    return words[0]


def checked_settings(path: Path) -> bytes:
    """What a file of settings for aws says, after each setting was found to be one of AWS_SETTINGS."""
    import configparser

    try:
        data = read_shared(path)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
    parser = configparser.RawConfigParser(default_section="", strict=False)
    try:
        parser.read_string(data.decode())
    except (configparser.Error, UnicodeDecodeError):
        raise StorageError(f"{path}: is not a file of settings for aws", "mend it") from None
    for section in parser.sections():
        kind = kind_of_section(section)
        if kind is None:
            raise StorageError(
                f"{path}: [{section}]: nobody but aws reads that as a profile, or as a session of a login",
                f"name it as they are named: [profile NAME], [sso-session NAME]; or take it out of {path}",
            )
        for name in parser[section]:
            if kind in ("plugins", "services") or name not in AWS_SETTINGS:
                raise StorageError(
                    f"{path}: [{section}] {name}: tazpod calls aws with no such setting",
                    "take it out; what a program or another server should give, give by the environment",
                )
    return data


def show_caches(home: Path, own: Path) -> None:
    """Give aws the caches of the login, where they are real folders; a dry run has a copy, in RAM."""
    import shutil

    if OPTIONS.dry_run:
        if own.is_relative_to("/dev/shm"):
            # aws may renew what it finds
            shutil.copytree(home / ".aws/sso/cache", own / "sso/cache", symlinks=True)
        return
    if make_folders(home, ".aws/sso/cache") and make_folders(home, ".aws/cli/cache"):
        (own / "sso").mkdir()
        for name in ("sso/cache", "cli/cache"):
            (own / name).symlink_to(home / ".aws" / name)


@contextlib.contextmanager
def aws_environment(profile: str = "") -> Iterator[dict[str, str]]:
    """The environment for every call of aws: it never asks, never pages, never looks for a cloud host.

    Its home is a fresh folder in RAM that holds the login's caches and nothing else: in ~/.aws an
    alias or a model could stand, and aws would run the one and believe the other.
    """
    import tempfile

    home = home_folder()
    settings = checked_settings(aws_config_file())
    credentials = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws/credentials")
    checked_settings(credentials)
    memory = "/dev/shm"
    if not os.path.isdir(memory):
        memory = ""
    with tempfile.TemporaryDirectory(prefix="tazpod-aws-", dir=memory or None) as folder:
        own = Path(folder, ".aws")
        (own / "cli").mkdir(parents=True)
        (own / "config").write_bytes(settings)
        if (home / ".aws/sso/cache").is_dir():
            show_caches(home, own)
        environment = {
            "HOME": folder,
            "AWS_CONFIG_FILE": str(own / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
            "AWS_PAGER": "",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": str(ATTEMPTS),
            # Newer versions add checksums that other stores than S3 refuse.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }
        if profile:
            environment["AWS_PROFILE"] = profile
        yield environment


def aws_argv(*words: str) -> list[str]:
    """The argv of a call of aws, in which no word can be taken for the address of a file.

    Where one begins with file:// or fileb://, aws puts the content of the file in its place and sends
    it away; older versions do so with http:// as well, and newer ones behind `@=` in any word.  Only the
    endpoint is an address.
    """
    before = ""
    for word in words:
        address = before == "--endpoint-url" and re.fullmatch(WEB_ADDRESS, word)
        if ("://" in word or "@=" in word) and not address:
            raise StorageError(f"aws was not called: it would take {word!r} for the address of a file")
        before = word
    return ["aws", *words]


def ask_aws(
    *words: str, profile: str = "", keys: str = "", limit: float = CALL_LIMIT, changes: bool = False
) -> Result:
    """One call of aws, whatever its status; `keys` is a credentials file that only this call can see.

    One that `changes` something is only shown by a dry run.
    """
    argv = aws_argv(*words)
    with contextlib.ExitStack() as stack:
        environment = stack.enter_context(aws_environment(profile))
        fds: tuple[int, ...] = ()
        if keys:
            fd = memory_file(keys.encode())
            stack.callback(os.close, fd)
            environment["AWS_SHARED_CREDENTIALS_FILE"] = f"/dev/fd/{fd}"
            fds = (fd,)
        run = act if changes else capture
        return run(argv, pass_fds=fds, limit=limit, env=environment)


def without_tokens(text: str) -> str:
    """A message without what looks like a key or a token: a server may send back what it was sent."""

    def shown(found: re.Match[str]) -> str:
        word = found[0]
        if all(re.search(kind, word) for kind in ("[a-z]", "[A-Z]", "[0-9]")):
            return "[...]"
        return word

    return re.sub(r"[A-Za-z0-9/+=_-]{32,}", shown, text)


def error_code(result: Result) -> str:
    """The service's own word for what went wrong; '' when it was not the service that refused."""
    found = re.search(r"An error occurred \(([^)]*)\)", result.err)
    if found is None:
        if result.code == 252 and UNKNOWN_OPTIONS in result.err:
            return UNKNOWN_OPTIONS
        return ""
    if re.fullmatch(r"[A-Za-z0-9._-]{1,100}", found[1]):
        return found[1]
    return "unknown"


def aws_error(result: Result, what: str) -> StorageError:
    """The error of a call that failed: what the service said, or that it never answered."""
    code = error_code(result)
    if code in LOGIN_CODES or any(sign in result.err.lower() for sign in LOGIN_SIGNS):
        return StorageError(f"{what}: the login has expired, or there is none", LOGIN_HINT, code)
    reason = error_line(without_tokens(result.err)) or f"aws status {result.code}"
    if "recursion" in reason or code in REDIRECT_CODES or reason == "'Message'":
        return StorageError(
            f"{what}: the storage sends us elsewhere, and never arrives", ELSEWHERE_HINT, code
        )
    return StorageError(f"{what}: {reason}", STORAGE_HINTS.get(code, ""), code)


def s3_argv(storage: Storage, operation: str, *words: str) -> list[str]:
    """One call of `aws s3api` on the bucket."""
    argv = ["s3api", operation, "--bucket", storage.bucket, "--region", storage.region]
    argv += ["--output", "json", "--cli-connect-timeout", "10", "--cli-read-timeout", f"{READ_LIMIT:g}"]
    if storage.endpoint:
        argv += ["--endpoint-url", storage.endpoint]
    return aws_argv(*argv, *words)


def transfer_text(storage: Storage, operation: str, words: Sequence[str]) -> str:
    """What a call of the storage is at, for people: with the bytes that it sends, or has fetched by now."""
    size = 0
    if operation == "put-object" and "--body" in words:
        with contextlib.suppress(OSError):
            size = os.stat(words[words.index("--body") + 1]).st_size
        return f"sending {bytes_text(size)} to {storage.bucket}"
    if operation == "get-object":
        with contextlib.suppress(OSError):
            size = os.stat(words[-1]).st_size
        return f"fetching the vault from {storage.bucket}, {bytes_text(size)} so far"
    return f"asking {storage.bucket}"


def s3(storage: Storage, operation: str, *words: str, what: str = "") -> dict[str, Any]:
    """One call of `aws s3api` on the bucket; its JSON answer.  Raises StorageError.

    The keys of an open vault go through a file in RAM that only this call can see.
    """
    profile = storage.profile
    keys = ""
    if storage.key_id:
        profile = KEYS_PROFILE
        keys = (
            f"[{KEYS_PROFILE}]\n"
            f"aws_access_key_id={storage.key_id}\n"
            f"aws_secret_access_key={storage.secret_key}\n"
        )
    limit = storage.limit or CALL_LIMIT
    if not storage.limit and operation in ("get-object", "put-object"):
        limit = TRANSFER_LIMIT
    _, *argv = s3_argv(storage, operation, *words)
    changes = operation not in LOOKING
    with waiting(partial(transfer_text, storage, operation, words)):
        result = ask_aws(*argv, profile=profile, keys=keys, limit=limit, changes=changes)
    if result.code != 0:
        raise aws_error(result, what or f"storage {storage.bucket}")
    try:
        answer = json.loads(result.out or b"{}")
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise StorageError(f"storage {storage.bucket}: the answer to {operation} makes no sense")
    return answer


# -- what is believed of an answer


def answered(answer: Mapping[str, Any], name: str, form: str) -> str:
    """A text of an answer, in the only form in which it is believed."""
    value = answer.get(name)
    if not isinstance(value, str) or not re.fullmatch(form, value):
        raise StorageError(f"the storage's answer makes no sense: {name}")
    return value


def answered_size(answer: Mapping[str, Any], name: str) -> int:
    """A size of an answer, in bytes."""
    value = answer.get(name)
    if type(value) is not int or not 0 <= value < LARGEST:
        raise StorageError(f"the storage's answer makes no sense: {name}")
    return value


def parse_remote(answer: Mapping[str, Any]) -> Remote:
    """What head-object and get-object say of an object.

    Without an etag, a size and a time it was not the storage that answered.  The metadata are those of
    whoever wrote the object; what is in no form of ours is as if it were not there.
    """
    etag = answered(answer, "ETag", ETAG)
    size = answered_size(answer, "ContentLength")
    modified = answered(answer, "LastModified", MOMENT)
    told = answer.get("Metadata")
    metadata = {}
    if isinstance(told, dict):  # a proxy on the way may write the names of headers with capitals
        metadata = {name.lower(): value for name, value in told.items()}
    digest = str(metadata.get("content-sha256", ""))
    if not re.fullmatch(DIGEST, digest):
        digest = ""
    push_id = str(metadata.get("tazpod-push", ""))
    if not re.fullmatch(PUSH_ID, push_id):
        push_id = ""
    project = str(metadata.get("tazpod-project", ""))
    if not re.fullmatch(CONTAINER_NAME, project[:200]):
        project = ""
    return Remote(etag, size, digest, push_id, modified, project[:200])


def head(storage: Storage) -> Remote | None:
    """The newest vault in the storage; None only when the storage says so."""
    try:
        answer = s3(storage, "head-object", "--key", storage.latest)
    except StorageError as error:
        if error.code in ABSENT_CODES:
            return None
        if error.code in ("400", "403"):  # the answer to HEAD has no text that could say why
            list_history(storage)
        raise
    return parse_remote(answer)


def download(storage: Storage, target: Path, key: str) -> Remote | None:
    """Fetch the object at a key into a new file, and check that all of it came; None as `head`."""
    try:
        answer = s3(storage, "get-object", "--key", key, str(target))
    except StorageError as error:
        # Not a bare 404: whatever stands between here and the storage can say that as well.
        if error.code in ("NoSuchKey", "NoSuchBucket"):
            return None
        raise
    if OPTIONS.dry_run:
        return head(storage)
    remote = parse_remote(answer)
    with closing(open_shared(target)) as fd:
        digest = digest_fd(fd)
        size = os.fstat(fd).st_size
        os.fsync(fd)
    if size == 0 or size != remote.size or remote.digest not in ("", digest):
        raise StorageError(
            f"storage {storage.bucket}: {key} came damaged",
            "again; or, from where it is whole: tazpod push --force",
        )
    return remote._replace(digest=digest)


def etag_of(remote: Remote | None) -> str:
    """The etag of an object; '' when there is none."""
    if remote is None:
        return ""
    return remote.etag


def upload(storage: Storage, path: Path, digest: str, base: Remote | None, push_id: str) -> Remote | None:
    """Put a sealed file in the place of `base`, or of nothing; None when another was faster.

    Read back before it is believed.  A retry of aws's own after a lost answer looks like a
    conflict, so the object is looked at for the id of this push before it is called one.
    """
    metadata = f"content-sha256={digest},tazpod-push={push_id}"
    if storage.project:
        metadata += f",tazpod-project={storage.project}"
    words = ("--key", storage.latest, "--body", str(path), "--metadata", metadata)
    condition = ("--if-none-match", "*")
    sent = True
    if base:
        condition = ("--if-match", base.etag.removeprefix("W/"))  # a weak one matches none (RFC 9110, 13.1.1)
    try:
        s3(storage, "put-object", *words, *condition)
    except StorageError as error:
        if error.code == UNKNOWN_OPTIONS:
            warn("this aws is too old for conditional writes: two pushes at once may lose one")
            if etag_of(head(storage)) != etag_of(base):
                return None
            s3(storage, "put-object", *words)
        elif error.code not in (*CONFLICT_CODES, *ABSENT_CODES) or error.code == "NoSuchBucket":
            raise
        else:
            sent = False
    if OPTIONS.dry_run:
        return Remote("", 0, digest, push_id, "")
    now = head(storage)
    if sent and now and not now.push:
        raise StorageError(
            f"storage {storage.bucket}: the vault was sent, but what lies there has no mark of who sent it",
            "does something on the way change metadata? tazpod verify --remote reads what lies there",
        )
    if now is None or now.push != push_id:
        return None
    if now.size != path.stat().st_size:
        raise StorageError(f"storage {storage.bucket}: the pushed vault came there damaged")
    return now


def version_key(storage: Storage, name: str) -> str:
    """The key in the storage of a version with this name; '' when no version can have it."""
    if not re.fullmatch(VERSION_NAME, name):
        return ""
    return f"{storage.history}{name}.tar.aes"


def version_in(storage: Storage, key: object) -> str:
    """The name of the version at a key of the storage; '' when it is none of ours."""
    if not isinstance(key, str):
        raise StorageError("the storage's answer makes no sense: Key")
    name = key[len(storage.history) : -len(".tar.aes")]
    if version_key(storage, name) != key:
        return ""
    return name


def list_history(storage: Storage) -> dict[str, Remote]:
    """The versions in the storage by key, the oldest first; what else lies there is not ours."""
    items = s3(storage, "list-objects-v2", "--prefix", f"{storage.history}vault-").get("Contents") or []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise StorageError("the storage's answer makes no sense: Contents")
    found = {}
    for item in items:
        if version_in(storage, item.get("Key")):
            etag = answered(item, "ETag", ETAG)
            size = answered_size(item, "Size")
            modified = answered(item, "LastModified", MOMENT)
            found[item["Key"]] = Remote(etag, size, "", "", modified)
    return {key: found[key] for key in sorted(found, key=version_order)}


def version_order(key: str) -> tuple[str, int]:
    """What sorts the keys of versions by age, also those of one second."""
    name = os.path.basename(key)[: -len(".tar.aes")]
    stem, _, number = name.partition("-")[2].partition("-")
    return stem, int(number or 1)


def history_key(storage: Storage, modified: str, etag: str, taken: Mapping[str, str]) -> str:
    """Where a version belongs in the history: its time as YYYYMMDDTHHMMSS, told apart if taken."""
    digits = re.sub(r"\D", "", modified)[:14]
    stem = f"vault-{digits[:8]}T{digits[8:]}"
    key = version_key(storage, stem)
    number = 1
    while taken.get(key, etag) != etag:
        number += 1
        key = version_key(storage, f"{stem}-{number}")
    return key


def copy_to_history(storage: Storage, remote: Remote, retention: int) -> list[str] | None:
    """Keep the present object as a version, whatever `retention` says; the keys of those that may go then.

    None when it is not the present object any more.
    """
    taken = {key: version.etag for key, version in list_history(storage).items()}
    key = history_key(storage, remote.modified, remote.etag, taken)
    if key not in taken:
        source = ("--copy-source", f"{storage.bucket}/{storage.latest}")
        unchanged = ("--copy-source-if-match", remote.etag.removeprefix("W/"))
        try:
            answer = s3(storage, "copy-object", *source, *unchanged, "--key", key)
        except StorageError as error:
            if error.code in (*CONFLICT_CODES, *ABSENT_CODES):
                return None
            raise
        copied = answer.get("CopyObjectResult")
        etag = copied.get("ETag") if isinstance(copied, dict) else None
        some_form = r'(W/)?"?[0-9A-Za-z-]+"?'  # some give no quotes
        confirmed = isinstance(etag, str) and re.fullmatch(some_form, etag)
        if not confirmed and not OPTIONS.dry_run:
            raise StorageError(f"storage {storage.bucket}: the copy to the history was not confirmed")
    later = {name for name in taken if version_order(name) > version_order(key)}
    if later:  # whoever may only put objects there must not push the versions out
        warn(
            f"storage {storage.bucket}: {len(later)} in its history with a name later than the newest vault;"
            " not taken for versions"
        )
    before = sorted({*taken} - {key, *later}, key=version_order)
    return before[: max(0, len(before) + 1 - retention)][:PRUNED_AT_ONCE]


def delete_versions(storage: Storage, keys: Sequence[str], retention: int) -> None:
    """Take versions out of the history of the storage, those that are older than the newest `retention`."""
    if not keys:
        return
    objects = json.dumps({"Objects": [{"Key": name} for name in keys], "Quiet": True})
    what = f"storage {storage.bucket}: versions older than the newest {retention} could not be deleted"
    try:
        if s3(storage, "delete-objects", "--delete", objects).get("Errors"):
            warn(what)
    except StorageError as error:  # the push is done all the same
        warn(f"{what}: {error}")


PROBE = ("--key", "tazpod/probe")
PROBES = (("--if-none-match", "*"), ("--if-match", '"0"'))


def honours_conditions(storage: Storage) -> bool:
    """Whether the storage keeps to If-None-Match and If-Match; some that speak S3 ignore both."""
    refused = 0
    for condition in PROBES:
        try:
            s3(storage, "put-object", *PROBE)
            s3(storage, "put-object", *PROBE, *condition)
        except StorageError as error:
            if error.code not in (*CONFLICT_CODES, UNKNOWN_OPTIONS):
                raise
            refused += 1
    s3(storage, "delete-object", *PROBE)
    return refused == 2 or OPTIONS.dry_run


def bucket_calls(storage: Storage) -> list[tuple[str, ...]]:
    """The calls that make the bucket private, versioned and encrypted: what for, operation, words."""
    where: tuple[str, ...] = ()
    if storage.region != "us-east-1":  # S3 refuses to be told the region where it began
        where = ("--create-bucket-configuration", f"LocationConstraint={storage.region}")
    block = "BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true"
    rule = '{"Rules":[{"ApplyServerSideEncryptionByDefault":{"SSEAlgorithm":"AES256"}}]}'
    return [
        ("the bucket", "create-bucket", *where),
        ("blocking public access", "put-public-access-block", "--public-access-block-configuration", block),
        ("versioning", "put-bucket-versioning", "--versioning-configuration", "Status=Enabled"),
        ("encryption", "put-bucket-encryption", "--server-side-encryption-configuration", rule),
    ]


def make_bucket(storage: Storage) -> list[str]:
    """Make the bucket; what the storage cannot do, by name."""
    missing = []
    for what, operation, *words in bucket_calls(storage):
        try:
            s3(storage, operation, *words)
        except StorageError as error:
            if error.code == "BucketAlreadyExists":
                message = f"the bucket name {storage.bucket} is somebody else's"
                raise StorageError(message, "choose another aws_sso.bucket", error.code) from None
            if error.code in ("NotImplemented", "MethodNotAllowed", "501", "405"):
                missing.append(what)
            elif error.code != "BucketAlreadyOwnedByYou":
                raise
    return missing


# ── 8. session ────────────────────────────────────────────────────────────────────────────
#
# Each `enter` and `run` holds a flock on a file under .tazpod/run, which the pod sees through the mount:
# however the host side dies, the lock falls.  SESSION_KINDS in section 0 is the table of the states in
# which it may be, of who makes them, and of what follows from each.


class State(NamedTuple):
    """What `enter` needs to know to decide."""

    ghost: bool
    open: bool
    sealed: bool


# The steps of entering.
UNLOCK = "unlock"
BOOTSTRAP = "bootstrap"
SHELL = "shell"
LEAVE = "leave"


def plan_entry(state: State, no_vault: bool = False) -> tuple[str, ...]:
    """The steps of entering, in the order of docs/contract.md; `no_vault` leaves the vault as it is."""
    if not state.ghost:
        return (SHELL,)
    if state.open or no_vault:
        return (SHELL, LEAVE)
    if state.sealed:
        return (UNLOCK, SHELL, LEAVE)
    return (BOOTSTRAP, SHELL, LEAVE)


def host_vault(config: Config) -> Vault:
    """The vault's folder as the host sees it; there is no mount on this side."""
    return Vault(config.project / ENVELOPE / "vault", Path("/nowhere"), keep=config.vault_keep)


def pod_vault(config: Config) -> Vault:
    """The vault as the pod sees it."""
    folder = Path(WORKSPACE, ENVELOPE, "vault")
    ram = ram_name(str(pod_made().get("container", "")))
    return Vault(folder, Path(config.home), config.vault_size, config.vault_keep, config.binds, ram=ram)


def seen_to_be_open(config: Config, container: Container, proc: str = "/proc") -> bool:
    """Whether this very machine shows the open vault in the container; only yes is an answer."""
    kinds = [mount.kind for mount in seen_mounts(container, proc) if mount.point == config.secrets]
    return kinds[-1:] == ["tmpfs"]


def observe(config: Config, container: Container) -> State:
    """Look at the vault of a running container."""
    if not config.ghost_mode:
        return State(ghost=False, open=False, sealed=False)
    opened = seen_to_be_open(config, container) or asked_if_open(config)
    vault = host_vault(config)
    if not opened and vault.marker.exists():
        with locked_file(vault.folder / ".lock", "working on the vault"):  # not in the middle of an unlock
            opened = asked_if_open(config)
            if not opened:
                tell_lost(vault)
    return State(ghost=True, open=opened, sealed=has_sealed(vault))


class Session:
    """One host side: its lease, locked as long as this process lives."""

    def __init__(self, folder: Path, told: bytes) -> None:
        self.folder = folder
        self.id = random_hex(8)
        self.told = told  # of the terminal, for the shell
        self.kind = LEASE
        self.fd = -1  # of the lease; none on a disk that is read-only
        self.claim = b""  # what the shell wrote when it claimed this session
        try:
            self.make()
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            warn(f"{folder}: the disk is read-only, so nothing can be saved, nor sessions be told apart")

    def file(self, kind: str) -> Path:
        """The session's file of that kind."""
        return self.folder / f"{self.id}.{kind}"

    def make(self) -> None:
        """Make the lease, which exists only locked."""
        hidden = private_folder(self.folder) / f".{self.id}"
        fd = create_file(hidden)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, self.told)
            rename_file(hidden, f"{self.id}.{self.kind}")
        except OSError as error:
            os.close(fd)
            remove_file(hidden)
            raise OSError(error.errno, error.strerror, str(hidden)) from None
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = fd

    def become(self, kind: str) -> None:
        """Say how far this session is: in the state SHELL_DUE the next shell claims it."""
        if self.fd >= 0:
            rename_file(self.file(self.kind), f"{self.id}.{kind}")
        self.kind = kind

    def wait_claimed(self, process: Any) -> None:
        """Wait until the shell has claimed this session: two entries must not swap theirs.

        Not for ever: an image whose bash does not read our hook claims nothing.
        """
        deadline = time.monotonic() + CLAIM_LIMIT
        while self.fd >= 0 and process.poll() is None and time.monotonic() < deadline:
            if self.is_claimed():
                return
            time.sleep(0.02)

    def is_claimed(self) -> bool:
        """Whether a shell has claimed this session; what it wrote is kept."""
        if not self.claim:
            with contextlib.suppress(OSError):
                self.claim = read_shared(self.file(CLAIM_KIND))
        return bool(self.claim)

    def restore(self) -> None:
        """Make the session's files anew when somebody has removed the run folder."""
        if self.id not in sessions(self.folder):
            self.make()
            if self.claim:
                write_whole(self.file(CLAIM_KIND), self.claim)
        self.is_claimed()

    def close(self, *, cut: bool = False) -> None:
        """Take the session's files away; when it was `cut` off they tell the guard what is left to do."""
        kinds = [AGENT_KIND]
        if not cut:
            kinds += [CLAIM_KIND, *SESSION_KINDS]
        for kind in kinds:
            with contextlib.suppress(OSError):
                remove_file(self.file(kind))
        link_agent(self.folder)
        if self.fd >= 0:
            os.close(self.fd)


def open_session(config: Config) -> Session:
    """A session of this process, with what its shell is to know of this terminal."""
    told = {key: os.environ.get(key, "") for key in SESSION_VARIABLES}
    told["SSH_AUTH_SOCK"] = ""
    if config.ssh_agent:
        told["SSH_AUTH_SOCK"] = POD_AGENT
    lines = [f"{key}={value}\n" for key, value in told.items() if re.fullmatch(SESSION_VALUE, value)]
    session = Session(config.run_folder, "".join(lines).encode())
    if config.ssh_agent:
        relay_agent(session.file(AGENT_KIND))
    return session


def relay_agent(place: Path) -> None:
    """Let the container reach the ssh agent of this host at a socket, for as long as this process lives."""
    if would(f"write {place}"):
        return
    import select
    import socket
    import socketserver
    import threading

    agent = os.environ.get("SSH_AUTH_SOCK", "")

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            # ValueError: the container has opened more of them than select(2) can watch
            with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as there:
                there.connect(agent)
                other = {self.request: there, there: self.request}
                while True:
                    for end in select.select(other, [], [])[0]:
                        data = end.recv(1 << 16)
                        if not data:
                            return
                        other[end].sendall(data)

    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(agent)
        with folder_at(place.parent) as folder:
            address = str(place)
            if sys.platform == "linux":  # bind(2) takes no descriptor of a folder
                address = f"/proc/self/fd/{folder}/{place.name}"
            server = socketserver.ThreadingUnixStreamServer(address, Relay)
        server.daemon_threads = True
    except OSError as error:  # a path that is too long for a socket has no strerror
        reason = error.strerror or error
        if not agent:
            reason = "SSH_AUTH_SOCK is not set"
        warn(f"no ssh agent for the container: {reason}")
        return
    threading.Thread(target=server.serve_forever, args=(3600.0,), daemon=True).start()
    link_agent(place.parent)


def link_agent(folder: Path) -> None:
    """Let run/agent.sock lead to the newest relay; without one, take it away."""
    link = folder / Path(POD_AGENT).name
    with contextlib.suppress(OSError):
        relays = sorted(folder.glob("*.agent"), key=lambda path: path.lstat().st_mtime_ns)
        if not relays:
            remove_file(link)
            return
        link_to(link, relays[-1].name)


def is_same_file(path: Path, fd: int) -> bool:
    """Whether a path still leads to the file that is open; yes when nobody can tell."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except OSError as error:
        return error.errno != errno.ENOENT


def sessions(folder: Path) -> dict[str, Path]:
    """The leases in a run folder, by session; looked for in the order in which they are renamed."""
    found = {}
    for kind in SESSION_KINDS:
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(folder):  # not by a glob, which the guard would feel each second
                if not name.endswith(f".{kind}"):
                    continue
                path = folder / name
                if path.is_file() and not path.is_symlink():
                    found[path.stem] = path
    return found


def kind_of(lease: Path) -> SessionKind:
    """What the state of a session means."""
    return SESSION_KINDS[lease.suffix[1:]]


def dead_sessions(folder: Path) -> list[Path]:
    """The leases of sessions after whose death the vault has not been locked yet."""
    leases = sessions(folder).values()
    return [lease for lease in leases if kind_of(lease).lock_follows and not is_alive(lease)]


def live_sessions(folder: Path, leaving: str = "") -> int:
    """How many sessions use the vault, without one that leaves: a read-only disk has no mark of that."""
    count = 0
    for name, lease in sessions(folder).items():
        if name != leaving and kind_of(lease).uses_vault and is_alive(lease):
            count += 1
    return count


def ensure_guard(config: Config) -> bool:
    """Start the guard in the container where none holds its lock; whether one was there already."""
    if is_alive(config.run_folder / GUARD_LOCK):
        return True
    with contextlib.suppress(TazpodError):
        act(guard_argv(config), limit=ASK_LIMIT)
    return False


@contextlib.contextmanager
def watching(config: Config, session: Session) -> Iterator[None]:
    """Meanwhile, in the background: a guard that died is replaced, a lease that was removed comes back."""
    import threading

    if OPTIONS.dry_run:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        pause = WATCH_PAUSE
        due = 0.0
        while not over.wait(WATCH_PAUSE):
            with contextlib.suppress(OSError):
                session.restore()
            if time.monotonic() < due:
                continue
            if ensure_guard(config):
                pause = WATCH_PAUSE
            else:  # longer each time, should none be seen to come
                pause = min(pause * 2, 60.0)
                due = time.monotonic() + pause

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()  # it may act as another user just now, which is the whole process's doing


# -- the vault and its copy in the storage


# What a key in the open vault may look like.  The first travels in the clear, before a slash of its own.
KEY_FORMS = {"access_key_id": r"[A-Za-z0-9._@-]{1,128}", "secret_access_key": r"[!-~]{1,256}"}


def key_in_vault(vault: Vault, name: str) -> str:
    """A key of AWS that lies in the open vault under a name, written either way; '' when none does.

    Whoever made the vault, or writes to it, chose what lies there, and the storage is told of it: so it
    is a file and no link, and never the passphrase.
    """

    def bare(data: bytes) -> str:
        return data.decode(errors="replace").strip().strip("'\"")

    passphrase = b""
    with contextlib.suppress(OSError):
        passphrase = read_shared(vault.mount / PASSPHRASE_FILE)
    for style in (f"aws_{name}", f"aws-{name.replace('_', '-')}"):
        path = vault.mount / style
        try:
            key = bare(read_shared(path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}", KEY_HINT) from None
        if not re.fullmatch(KEY_FORMS[name], key):
            raise StorageError(f"{path}: does not hold one key in one line", KEY_HINT)
        if key == bare(passphrase):
            raise StorageError(f"{path}: holds the passphrase of the vault, not a key", KEY_HINT)
        return key
    return ""


def project_label(config: Config) -> str:
    """Whose vault it is, for the storage: the container's name, which a clone of the project has as well.

    Inside, where config.yaml names none, it is made from the folder's name outside.
    """
    name = config.container_name
    if in_pod() and name == legal_name(Path(WORKSPACE).name):
        name = legal_name(Path(os.environ["HOST_CWD"]).name)
    return name


def storage_of(config: Config, vault: Vault) -> Storage:
    """The storage, with credentials in the order of docs/contract.md."""
    storage = Storage(
        config.aws_bucket,
        config.aws_region,
        config.aws_profile,
        config.aws_endpoint,
        prefix=config.aws_prefix,
        project=project_label(config),
    )
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return storage._replace(profile="")
    key_id = key_in_vault(vault, "access_key_id")
    secret_key = key_in_vault(vault, "secret_access_key")
    if key_id and secret_key:
        return storage._replace(key_id=key_id, secret_key=secret_key)
    return storage


def named_storage(config: Config, vault: Vault) -> Storage:
    """The storage, where config.yaml names one or this project was synced with it: no bucket by accident."""
    if config.aws_named or base_of(vault, config):
        return storage_of(config, vault)
    raise UsageError(
        "no storage is named", f"put the bucket's name into {CONFIG_PATH}: aws_sso: {{bucket: NAME}}"
    )


def uses_storage(config: Config, vault: Vault) -> bool:
    """Whether this project has to do with the storage: synced before, or it is named and there is a login."""
    if base_of(vault, config):
        return True
    return config.aws_named and has_credentials(storage_of(config, vault), vault)


def has_credentials(storage: Storage, vault: Vault) -> bool:
    """Whether there is something to ask the storage with: keys, or what a login has left."""
    if storage.key_id or not storage.profile:
        return True
    return any((vault.home / ".aws/sso/cache").glob("*"))


def compare_sides(sealed: str, base: Mapping[str, str], remote: Remote | None) -> str:
    """How the sealed vault, by its digest, stands to the storage's, by what both had at the last sync."""
    if remote is None and not sealed:
        return "empty"
    if remote is None:
        return "ahead"
    if not sealed:
        return "behind"
    if remote.digest == sealed:
        return "in sync"
    changed_here = sealed != base.get("digest", "")
    changed_there = not (is_last_synced(base, remote) or is_own_push(base, remote))
    if changed_there and remote.digest in base.get("past", "").split():
        return "older"
    if changed_here and changed_there:
        return "diverged"
    if changed_there:
        return "behind"
    if changed_here:
        return "ahead"
    return "in sync"


# What remote.json may hold, and in which form.
BASE_FORMS = {
    "bucket": AWS_BUCKET,
    "prefix": AWS_PREFIX,
    "etag": f"{ETAG}|",
    "digest": f"{DIGEST}|",
    "time": r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} UTC",
    "pushing": PUSH_ID,
    "conflict": DIGEST,
    "past": f"{DIGEST}(?: {DIGEST})*",
}
PAST_LIMIT = 100  # digests of earlier syncs that are remembered


def read_base(vault: Vault) -> dict[str, str]:
    """What was last synced: bucket, etag, digest, time; `past`: the digests of the syncs before.

    `pushing` is there while a push is under way, `conflict` until somebody has decided.

    A container can write this file: when anything in it has another form, nothing of it is believed.
    """
    data = read_json(vault.folder / "remote.json")
    for name, value in data.items():
        form = BASE_FORMS.get(name)
        if form is None or not isinstance(value, str) or not re.fullmatch(form, value):
            return {}
    return data


def write_base(vault: Vault, config: Config, **facts: str) -> None:
    """Remember what was last synced.  Losing it is harmless: the next push then asks."""
    facts = {"bucket": config.aws_bucket, **facts}
    if config.aws_prefix != DEFAULT_PREFIX:
        facts["prefix"] = config.aws_prefix
    write_whole(vault.folder / "remote.json", json.dumps(facts).encode())


def base_of(vault: Vault, config: Config) -> dict[str, str]:
    """What was last synced with the bucket and prefix of the config; nothing that another said."""
    base = read_base(vault)
    place = base.get("bucket"), base.get("prefix", DEFAULT_PREFIX)
    if place != (config.aws_bucket, config.aws_prefix):
        return {}
    return base


def past_with(base: Mapping[str, str], newest: str, current: str = "") -> str:
    """The digests of the syncs before, with one more and without the current one, as remote.json has them."""
    digests = dict.fromkeys([newest, *base.get("past", "").split()])
    for none in ("", current):
        digests.pop(none, None)
    return " ".join([*digests][:PAST_LIMIT])


def synced(vault: Vault, config: Config, etag: str, digest: str) -> None:
    """Remember what this machine has seen in the storage; '' and '' for nothing."""
    base = base_of(vault, config)
    facts = {"etag": etag, "digest": digest, "time": utc(time.time())}
    past = past_with(base, base.get("digest", ""), digest)
    if past:
        facts["past"] = past
    write_base(vault, config, **facts)


# What is typed next when the sealed file is lost, by what tells that there was one.
FOUND_AGAIN = {
    "storage": "tazpod pull, or tazpod history and tazpod restore VERSION",
    "history": "tazpod history, then tazpod restore VERSION",
}


def missing_vault(vault: Vault) -> str:
    """What tells of a sealed vault whose file is not there; '' when nothing does, or it is there.

    Losing a file is no new beginning: a new vault in its place would in time replace the old one.
    """
    if has_sealed(vault):
        return ""
    if os.path.lexists(vault.folder / "remote.json"):
        base = read_base(vault)
        # One that cannot be read may tell of a vault as well.
        if not base or base.get("digest") or base.get("etag") or "pushing" in base or "past" in base:
            return "storage"
    if kept_files(vault):
        return "history"
    return ""


def is_last_synced(base: Mapping[str, str], remote: Remote | None) -> bool:
    """Whether the storage holds what it did at the last sync, which may be nothing.

    The bytes count: an etag is a word of the storage's.  Only of what says nothing of its bytes, as
    other tools leave it there, the etag has to do until it is fetched.
    """
    if remote is None:
        return not base.get("etag")
    if remote.digest:
        return remote.digest == base.get("digest")
    return remote.etag == base.get("etag")


def is_own_push(base: Mapping[str, str], remote: Remote) -> bool:
    """Whether an object is that of our last push, whose answer was lost."""
    return bool(remote.push) and remote.push == base.get("pushing")


def gone_back(vault: Vault, base: Mapping[str, str], remote: Remote) -> str:
    """What shows that the storage does not hold the newest that it had; '' for nothing."""
    if is_last_synced(base, remote) or is_own_push(base, remote):
        return ""
    if remote.digest in base.get("past", "").split() or is_version(vault, remote.digest):
        return "holds an older version, which was replaced before"
    if remote.etag == base.get("etag"):
        return "holds other bytes than at the last sync, and calls them by the same name (ETag)"
    return ""


def conflict(text: str) -> StorageError:
    """Both sides have what the other has not: nothing was overwritten, and there are three ways."""
    return StorageError(
        f"{text}; nothing was overwritten",
        "keep mine as the next push, theirs in the history: tazpod pull --keep-mine; "
        "take theirs, mine in the history: tazpod pull --force; "
        "overwrite theirs, kept in its history: tazpod push --force",
    )


@contextlib.contextmanager
def syncing(vault: Vault) -> Iterator[Path]:
    """One push or pull at a time on this machine; the name of the file that it sends or fetches.

    Not a name that a save takes for its own leftover: the two may run at the same time.
    """
    check_folder(vault)
    with locked_file(vault.folder / ".sync", "talking to the storage", 3 * CALL_LIMIT):
        for stale in (*vault.folder.glob(".*.part"), *vault.folder.glob(".remote.json.*.tmp")):
            remove_file(stale)
        path = vault.folder / f".{SEALED_NAME}.{random_hex(4)}.part"
        try:
            yield path
        finally:
            remove_file(path)


def push(config: Config, vault: Vault, *, force: bool = False) -> bool:
    """Send the sealed vault to the storage; False when it is there already.  With `force` it is always sent.

    Raises StorageError, also for a conflict; the remote is then as it was.
    """
    storage = storage_of(config, vault)
    with syncing(vault) as snapshot:
        with exclusive(vault):
            digest = sealed_digest(vault)
            if not digest:
                raise VaultError(f"{vault.sealed}: there is no sealed vault to push")
            copy_file(vault.sealed, snapshot)
            size = look_at(vault.sealed).st_size
        base = base_of(vault, config)
        present = head(storage)
        if present and present.digest == digest and present.size == size and not force:
            synced(vault, config, present.etag, digest)
            return False
        reason = ""
        if not force:
            refuse_another_project(storage, base, present, "push")
            reason = why_not_replaced(vault, storage, base, present)
        if not reason:
            now = replace_remote(config, vault, snapshot, digest, present)
            if now:
                synced(vault, config, now.etag, digest)
                return True
            reason = "another machine pushed at the same time, or the storage did not keep what was sent"
        write_base(vault, config, **{**base_of(vault, config), "conflict": digest})
        raise conflict(reason)


def refuse_another_project(
    storage: Storage, base: Mapping[str, str], remote: Remote | None, word: str
) -> None:
    """Raise where the storage holds the vault of another project, which this one was never synced with."""
    if remote is None or remote.project in ("", storage.project) or is_last_synced(base, remote):
        return
    does = {"push": "replaces it, and keeps it in the history there", "pull": "takes it"}
    place = f"{storage.bucket}/{storage.prefix}"
    raise StorageError(
        f"{place} holds the vault of {remote.project}, and this is {storage.project}",
        f"a place of its own: aws_sso.prefix in {CONFIG_PATH}, for example "
        f"tazpod/{storage.project.removesuffix('-lab')}; or tazpod {word} --force, which {does[word]}",
    )


def why_not_replaced(vault: Vault, storage: Storage, base: Mapping[str, str], present: Remote | None) -> str:
    """What in the storage this machine has not seen, and must not replace unasked; '' for nothing."""
    if is_last_synced(base, present):
        return ""
    if present is None:
        return f"{storage.bucket} held a vault at the last sync and holds none now"
    if is_own_push(base, present):
        return ""
    what = gone_back(vault, base, present) or "holds a vault that this machine has not seen"
    return f"{storage.bucket} {what}"


def replace_remote(
    config: Config, vault: Vault, snapshot: Path, digest: str, present: Remote | None
) -> Remote | None:
    """Put a sealed file in the place of the present object, which the history keeps; None as `upload`."""
    storage = storage_of(config, vault)
    old: list[str] | None = []
    if present:
        old = copy_to_history(storage, present, config.vault_retention)
    if old is None:
        return None
    push_id = random_hex(16)
    base = base_of(vault, config)
    # Should the answer be lost, this version is known as an old one all the same.
    write_base(vault, config, **{**base, "past": past_with(base, digest), "pushing": push_id})
    now = upload(storage, snapshot, digest, present, push_id)
    if now:  # a push that fails, again and again perhaps, takes nothing away
        delete_versions(storage, old, config.vault_retention)
    return now


def refuse_older(vault: Vault, config: Config, remote: Remote, force: bool) -> None:
    """Raise when the storage has gone back to an older version.

    A person may want that one, and says so on being asked, or before with `force`, which is told as well.
    """
    found = gone_back(vault, base_of(vault, config), remote)
    if not found:
        return
    what = f"{config.aws_bucket} {found} ({remote.modified})"
    say(what)
    if not force and not confirm("Take it all the same?"):
        raise StorageError(
            f"{what}; it was not taken",
            "tazpod pull --force takes it; tazpod push --force puts this one in its place",
        )


def pull(config: Config, vault: Vault, *, keep_mine: bool = False, force: bool = False) -> bool | None:
    """Bring the storage's vault here; False when it is here already, None when there is none.

    What was sealed here and never pushed is not buried unless told so.
    """
    storage = storage_of(config, vault)
    with syncing(vault) as incoming:
        remote = download(storage, incoming, storage.latest)
        if remote is None:
            return None
        mine = sealed_digest(vault)
        keep_mine = keep_mine and bool(mine)
        if mine != remote.digest and not keep_mine:
            refuse_older(vault, config, remote, force)  # nothing is locked: who is asked may never answer
        if not force:
            refuse_another_project(storage, base_of(vault, config), remote, "pull")
        with exclusive(vault):
            mine = sealed_digest(vault)
            if mine == remote.digest:
                synced(vault, config, remote.etag, remote.digest)
                return False
            unpushed = bool(mine) and mine != base_of(vault, config).get("digest")
            if unpushed and not force and not keep_mine:
                raise conflict("what was sealed here was never pushed, and the storage holds another vault")
            if not keep_mine and is_open(vault):
                raise VaultError("the vault is open, and the storage holds another", "tazpod lock, then pull")
            set_mode(incoming, 0o600)
            if keep_mine and mine:
                add_version(vault, incoming)
            else:
                keep_version(vault)
                rename_file(incoming, SEALED_NAME)
            sync_folder(vault.folder)
            synced(vault, config, remote.etag, remote.digest)
        return True


# -- in and out


def pod_command(
    config: Config, words: Sequence[str], passphrase: bytes | None = None, stdout: int | None = None
) -> int:
    """Run a word of ours in the pod, on this terminal if there is one; its exit status."""
    flags = [flag for flag, on in (("--debug", OPTIONS.debug), ("--yes", OPTIONS.yes)) if on]
    command = ["tazpod", *flags, *words]
    if passphrase is None and all_terminal(stdout):
        code = run_foreground(exec_argv(config, command), stdout=stdout)
    elif passphrase is None:  # our standard input is not for the pod
        code = run_foreground(exec_argv(config, command, terminal=False), stdin=DEVNULL)
    else:
        with secret_fd(passphrase) as fd:
            argv = exec_argv(config, [*command, "--passphrase-fd", "0"], terminal=False)
            code = run_foreground(argv, stdin=fd)
    if OPTIONS.dry_run:
        return rehearse_in_pod(config, words, passphrase is not None)
    return code


def rehearse_in_pod(config: Config, words: Sequence[str], given: bool) -> int:
    """In a dry run: what a word does in the pod, asked of the pod itself; its exit status.

    A pod that does not run, or holds another tool, cannot be asked.  With `given` there is a passphrase.
    """
    if config.container_name in OPTIONS.containers:
        return OK
    container = find_container(config)
    if container is None or not container.running or not is_installed(config, container):
        return OK
    command = ["tazpod", "--dry-run", *words]
    if OPTIONS.yes or on_terminal():
        command.append("--yes")  # where there is a terminal, it would be asked there
    if given:
        command += ["--passphrase-fd", "0"]
    result = capture(exec_argv(config, command, terminal=False))
    for text in result.out.decode(errors="replace").splitlines():
        emit(text)
    relay(result.err)
    return result.code


def docker_settings(config: Config, terminal: bool) -> dict[str, str]:
    """The environment for a docker that leaves Ctrl-P to the shell.

    Docker's default keys to detach begin with it; they can be set in its config file alone, since the
    argv of entering is fixed.  Nothing secret is copied, and whoever set keys of their own keeps them.
    Outside the project: such a file may name programs for docker to run.
    """
    if not terminal or config.program != "docker":  # Podman is told by an option
        return {}
    own = Path(os.environ.get("DOCKER_CONFIG") or home_folder() / ".docker")
    settings: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        settings = json.loads((own / "config.json").read_text())
    if "detachKeys" in settings or "HttpHeaders" in settings:
        return {}
    context = settings.get("currentContext", "default")
    text = json.dumps({"currentContext": context, "detachKeys": DETACH_KEYS}).encode()
    folder = state_folder() / "docker"
    try:
        private_folder(folder)
        link = folder / "contexts"
        path = folder / "config.json"
        if not link.is_symlink() or os.readlink(link) != str(own / "contexts"):
            link_to(link, str(own / "contexts"))
        if not path.is_file() or path.read_bytes() != text:
            write_whole(path, text)
    except OSError:
        return {}
    return {"DOCKER_CONFIG": str(folder), "DOCKER_CERT_PATH": os.environ.get("DOCKER_CERT_PATH", str(own))}


def open_shell(config: Config, session: Session, folder: str) -> int:
    """The shell in that folder, tied to this session; its exit status."""
    with contextlib.ExitStack() as starting:
        path = config.run_folder / "enter.lock"
        starting.enter_context(locked_file(path, "opening a shell", math.inf))
        session.become(SHELL_DUE)

        def claimed(process: Any) -> None:
            session.wait_claimed(process)
            starting.close()

        terminal = all_terminal()
        env = docker_settings(config, terminal)
        with watching(config, session):
            return run_foreground(shell_argv(config, terminal, folder), env=env, after_start=claimed)


def leave_vault(config: Config, session: Session, cut: bool) -> int:
    """End the session: the pod saves and locks, unless other sessions are open.

    Of one that was `cut` off nobody is there to answer a question.
    """
    words = ["lock", "--leaving", session.id]
    start = b""
    with contextlib.suppress(VaultError):
        start = sealed_head(host_vault(config).sealed)
    if start and not is_native(start) and on_terminal() and not cut:
        with contextlib.suppress(SystemExit):  # there is a question; whoever is asked may go away
            code = pod_command(config, words)
            if on_terminal():
                return code
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # this runs to its end
    argv = exec_argv(config, ["tazpod", *words], terminal=False)
    with waiting(lambda: "saving and locking the vault"):
        return run_foreground(argv, stdin=DEVNULL, own_session=True)


def entry_step(config: Config, words: Sequence[str]) -> int:
    """A word in the pod on the way in; Ctrl-C at what it asks ends all of it."""
    code = pod_command(config, words)
    if code == INTERRUPTED:
        raise SystemExit(code)
    return code


def bootstrap(config: Config, session: Session) -> None:
    """No vault here: fetch it, each step its own exec, so that no stray key of one reaches the next.

    A new vault is offered only when the storage says for certain that it has none, or on request;
    at once where nothing in the project or its surroundings names a storage.  Where a sealed file
    was lost, `unlock` tells and asks.
    """
    lost = missing_vault(host_vault(config))
    if config.aws_named and confirm("There is no vault here. Log in and pull it from the storage?"):
        if "AWS_ACCESS_KEY_ID" not in config.aws_variables and entry_step(config, ["login"]) != 0:
            return
        code = entry_step(config, ["pull", "vault"])
        if code == 0:
            entry_step(config, unlock_words(session))
        if code != ABSENT or not confirm("The storage has no vault. Start a new, empty one?"):
            return
    elif lost:
        if not on_terminal():
            warn(f"the sealed vault is missing: {FOUND_AGAIN[lost]}")
            return
    elif not confirm("There is no vault yet. Start a new, empty one?"):
        return
    entry_step(config, unlock_words(session))


def tell_sync(config: Config, vault: Vault) -> None:
    """At entry: what the storage has not got, or a conflict that waits for a decision."""
    base = base_of(vault, config)
    if not base:
        return
    with contextlib.suppress(TazpodError):
        digest = sealed_digest(vault)
        if missing_vault(vault):
            return  # told and asked about when it is opened
        if digest and "conflict" in base:
            warn("the storage holds another vault than this machine: tazpod push tells the ways out")
        elif digest != base.get("digest", ""):
            warn(f"the sealed vault was not pushed since {base.get('time', 'the last sync')}")


def enter(config: Config, folder: str = WORKSPACE, no_vault: bool = False) -> int:
    """The whole walk: container, vault, shell, save and lock; the shell's exit status."""
    config, container = ensure_up(config, tell=True)
    # Before the look: whoever locks just now counts this session, or it sees that the vault is locked.
    session = open_session(config)
    steps: tuple[str, ...] = ()
    code = FAILED
    cut = True
    left = True
    try:
        steps = plan_entry(observe(config, container), no_vault)
        left = LEAVE not in steps
        if config.ghost_mode:
            tell_sync(config, host_vault(config))
        if UNLOCK in steps and (on_terminal() or OPTIONS.yes):
            entry_step(config, unlock_words(session))
        if BOOTSTRAP in steps:
            bootstrap(config, session)
        if steps == (SHELL, LEAVE):
            ensure_guard(config)  # else the unlock has started one
        code = open_shell(config, session, folder)
        cut = False
        if left and code in EXEC_CUT:
            tell_gone(config)
    finally:
        try:
            if not left:
                code, left = leave_and_tell(config, session, cut, code)
        finally:
            end_session(config, session, cut=not left)
    return code


def unlock_words(session: Session) -> list[str]:
    """The unlock that a session asks for: without its host side, the vault is not opened."""
    return ["unlock", "--session", session.id]


def end_session(config: Config, session: Session, cut: bool) -> None:
    """Close a session; of one that was cut off, the guard ends what still runs, and locks."""
    session.close(cut=cut)
    if cut:
        ensure_guard(config)


def leave_and_tell(config: Config, session: Session, cut: bool, code: int) -> tuple[int, bool]:
    """Leave, and say what became of the vault when that failed.

    Gives the status to exit with, and whether the vault needs nothing more: else the guard goes on.
    It must not where a person said no: it would do what they did not want as soon as they have gone.
    """
    done = leave_vault(config, session, cut)
    if done == OK:
        return code, True
    if done == DECLINED:
        complain(VaultError("the vault was not locked", "it stays open until: tazpod lock"))
        return code or FAILED, True
    if tell_gone(config):
        return code or FAILED, True
    # A container that was down just now may be back without its vault: this lock tells what is lost.
    if not asked_if_open(config, strict=False) and leave_vault(config, session, cut) == 0:
        return code, True
    hint = "see above; it is tried again until it is done: tazpod status"
    complain(VaultError("the vault was not locked", hint))
    return code or FAILED, False


EXEC_CUT = (137, 255)  # the status of an exec under which the container, or the engine, died


def tell_gone(config: Config) -> bool:
    """Whether the container has gone; that is said, with the time of the last save."""
    try:
        if is_there(config):
            return False
    except TazpodError as error:
        lost = lost_text(config)
        if lost:
            lost += " if the container does not survive"
        raise TazpodError(f"{error}{lost}", error.hint) from None
    hint = "the sealed vault is untouched: tazpod"
    complain(TazpodError(f"the container {config.container_name} is gone{lost_text(config)}", hint))
    return True


def lost_text(config: Config) -> str:
    """What is lost with a container in which the vault was open; nothing of one that was locked."""
    try:
        when = look_at(host_vault(config).marker).st_mtime
    except OSError:  # whoever takes a container down in good order locks first
        return ""
    return f"; what changed in the open vault after {utc(when)} is lost"


def is_there(config: Config) -> bool:
    """Whether the container runs, or is paused.

    That is tried by an exec, since docker calls a container running for some moments after it was killed.
    """
    container = find_container(config)
    if container is None or not container.in_memory:
        return False
    if container.status == "paused":
        return True
    return capture([config.program, "exec", config.container_name, "true"]).code == 0


def open_for_run(
    config: Config, session: Session, state: State, passphrase: bytes | None, new: bool
) -> int | None:
    """Open a locked vault for a command, where it can be: the status of the unlock, None for none.

    A person who declines is no failure.
    """
    if state.open:
        ensure_guard(config)
        return None
    told = passphrase is not None or new
    if not state.ghost or not (told or (state.sealed and on_terminal())):
        return None
    words = unlock_words(session)
    if new:
        words.append("--new")
    return pod_command(config, words, passphrase, stdout=2)


def must_be_open(config: Config, state: State) -> None:
    """VaultError where a command has not got the vault that it requires."""
    if state.open or OPTIONS.dry_run or (state.ghost and asked_if_open(config)):
        return
    hint = "tazpod unlock first; or --passphrase-fd N"
    raise VaultError("the vault is locked, so the command was not run", hint)


class Command(NamedTuple):
    """What `run` is to start: words, the folder of the container, and files of the vault for variables."""

    words: Sequence[str]
    folder: str
    files: Sequence[str] = ()  # NAME=FILE; or =FILE, which has lines NAME=VALUE
    require: bool = False  # an open vault


def run_inside(config: Config, command: Command, passphrase: bytes | None = None, new: bool = False) -> int:
    """A command in the pod, with the vault if it is open or may be opened; the command's exit status.

    A vault that this opened, or that others share, is left as a session leaves it.  One that was opened
    by `unlock` alone stays open.  With `require` the command does not run without the vault.
    """
    config, container = ensure_up(config, tell=True)
    shared = config.ghost_mode and live_sessions(config.run_folder) > 0
    session = open_session(config)
    code = FAILED
    cut = True
    try:
        state = observe(config, container)
        unlocked = open_for_run(config, session, state, passphrase, new)
        shared = shared or unlocked is not None
        cut = False
        if unlocked:
            return unlocked
        if command.require:
            must_be_open(config, state)
        cut = True
        if not shared:
            session.become(VISIT)
        code = run_claimed(config, session, command)
        cut = code >= 128  # a docker that was ended leaves the command behind
        if code in EXEC_CUT and not shared and tell_gone(config):
            cut = False
    finally:
        try:
            if shared:
                code, cut = leave_after_run(config, session, code, cut)
        finally:
            end_session(config, session, cut)
    return code


def run_claimed(config: Config, session: Session, command: Command) -> int:
    """Run a command that ties itself to this session; its exit status."""
    claim = f"{WORKSPACE}/{ENVELOPE}/run/{session.id}.{CLAIM_KIND}"
    terminal = all_terminal()
    env = docker_settings(config, terminal)
    with watching(config, session):
        argv = exec_argv(config, command.words, terminal, command.folder, claim)
        return run_foreground([*argv, *command.files], env=env)


def leave_after_run(config: Config, session: Session, code: int, cut: bool) -> tuple[int, bool]:
    """Leave the vault that a command has used: the status to exit with, and whether the guard must go on."""
    with contextlib.suppress(OSError):  # the command may have cleaned up there
        session.become(LEAVING)
    if live_sessions(config.run_folder, session.id):
        return code, cut
    code, left = leave_and_tell(config, session, cut, code)
    return code, not left


# ── 9. guard ──────────────────────────────────────────────────────────────────────────────
#
# From the end of a session to the locked vault there are two ways.
#
# A host side that lives, also one that was told to end: enter, leave_and_tell, leave_vault.  That runs
# `tazpod lock --leaving ID` in the pod: cmd_lock, save_and_lock, end_dead_sessions (marks its own lease as
# LEAVING and counts the others), save, lock.  Then Session.close takes the session's files away.  When
# the lock fails, the lease stays, free to be locked by anybody, and the second way begins.
#
# A host side that is dead: the kernel frees the lock on its lease.  guard, look_after, end_dead_sessions
# finds the lease, and hang_up ends the shell that claimed it.  When no other session lives, look_after
# starts `tazpod lock --leaving=guard`, which is save_and_lock as above.  The lease stays until a look finds
# the vault locked (rest, forget): a lock that failed, or a guard that was killed, is followed by another.


class Shell(NamedTuple):
    """A shell in the pod, known by its process and the time when that started."""

    pid: int
    start: str


def parse_shell(text: str) -> Shell | None:
    """The shell that a line of /proc/<pid>/stat describes (proc_pid_stat(5))."""
    left, _, right = text.rpartition(")")
    fields = right.split()
    number = left.partition(" ")[0]
    if not number.isdigit() or len(fields) < 20:
        return None
    return Shell(int(number), fields[19])


def shell_of(folder: Path, session: str) -> Shell | None:
    """The shell that claimed a session, if it still runs."""
    with contextlib.suppress(OSError, ValueError):
        claimed = parse_shell(read_shared(folder / f"{session}.{CLAIM_KIND}").decode())
        if claimed and claimed == parse_shell(Path(f"/proc/{claimed.pid}/stat").read_text()):
            return claimed
    return None


def hang_up(folder: Path, session: str) -> None:
    """End a session's shell, as a closed terminal would."""
    for number in (signal.SIGHUP, signal.SIGKILL):
        shell = shell_of(folder, session)
        if shell is None:
            return
        with contextlib.suppress(OSError):
            signal_group(shell.pid, number)  # what docker exec starts leads a group
        if OPTIONS.dry_run:
            return
        deadline = time.monotonic() + 2
        while shell_of(folder, session) and time.monotonic() < deadline:
            time.sleep(0.05)


def has_shell_at_least(folder: Path, session: str) -> bool:
    """Whether a session lives as far as anybody can tell where the locks of host sides are not seen.

    Such a session lives as long as its shell runs, or as no shell has claimed it yet.
    """
    if pod_made().get("sees_locks", True):
        return False
    claimed = (folder / f"{session}.{CLAIM_KIND}").exists()
    return not claimed or shell_of(folder, session) is not None


def end_dead_sessions(folder: Path, leaving: str = "") -> tuple[list[Path], int]:
    """End the sessions whose host side has died, and `leaving`; their leases, and how many live.

    The one that leaves is marked before the others are counted: of two that leave at once, one
    sees that the other is going.  A dead lease stays until the vault is locked or somebody else
    uses it (see `forget`): whoever looks next sees that a lock is due, also after a guard was killed.
    """
    dead = []
    alive = 0
    path = sessions(folder).get(leaving)
    if path:
        with contextlib.suppress(OSError):
            rename_file(path, f"{leaving}.{LEAVING}")
        hang_up(folder, leaving)
    for name, path in sessions(folder).items():
        if is_alive(path) or has_shell_at_least(folder, name):
            if kind_of(path).uses_vault and name != leaving:  # on a read-only disk it could not be marked
                alive += 1
            continue
        hang_up(folder, name)
        if kind_of(path).lock_follows:
            dead.append(path)
        else:
            forget([path])
    return dead, alive


def forget(leases: Sequence[Path]) -> None:
    """Take away what dead sessions have left."""
    for lease in leases:
        for path in (lease, lease.with_suffix(f".{CLAIM_KIND}"), lease.with_suffix(f".{AGENT_KIND}")):
            with contextlib.suppress(OSError):
                remove_file(path)
    if leases:
        link_agent(leases[0].parent)


def terminal_of(pid: int) -> Path:
    """The terminal of a process, or else its standard input (proc_pid_stat(5)).

    /proc/<pid>/fd will not do: where the project is root's, Docker's first shell is closed to it.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    device = int(fields[4])
    if os.major(device) == 136:
        return Path(f"/dev/pts/{os.minor(device)}")
    return Path(f"/proc/{pid}/fd/0")


def last_sign_of_life(vault: Vault, folder: Path) -> float:
    """When somebody last typed, or something was last printed, in any session (epoch seconds)."""
    moments = [0.0]
    with contextlib.suppress(OSError):
        moments.append((vault.mount / STATE_FILE).stat().st_mtime)
    for name in sessions(folder):
        shell = shell_of(folder, name)
        if shell:
            with contextlib.suppress(OSError):
                terminal = os.stat(terminal_of(shell.pid))
                moments += (terminal.st_atime, terminal.st_mtime)
    return max(moments)


class Task:
    """A word that the guard runs in a process of its own, so that it stays small and goes on looking.

    What succeeded is due again `every` seconds later; what failed, after a pause that doubles up to
    `longest` seconds.
    """

    def __init__(self, word: str, every: float, longest: float) -> None:
        self.word = word
        self.every = every
        self.longest = longest
        self.process: Any = None
        self.talk = -1  # the descriptor into which it speaks
        self.started = 0.0
        self.pause = 0.0
        self.due = time.monotonic() + every  # not to be started before

    def start(self, *options: str) -> None:
        """Start it; its pause counts from now on, should it not even start."""
        self.started = time.monotonic()
        self._wait_longer()
        argv = [POD_LAUNCHER, self.word, *options]
        self.talk = memory_file()
        try:
            self.process = launch(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=self.talk)
        except TazpodError:
            os.close(self.talk)
            raise

    def settle(self, log: Any) -> bool:
        """Whether it has just succeeded; how it ended is logged."""
        if self.process is None:
            return False
        code = self.process.poll()
        passed = time.monotonic() - self.started
        if code is None:
            if passed > 2 * TRANSFER_LIMIT:
                self.process.kill()
            return False
        result = Result(code, b"", read_back(self.talk).decode(errors="replace"))
        os.close(self.talk)
        self.process = None
        said = " / ".join(line.strip() for line in result.err.splitlines())
        if code != 0:
            log.error("%s: status %d in %.1f s: %s", self.word, code, passed, said)
            note_guard(failed=int(time.time()), error=f"{self.word}: {result.reason}")
            self.due = time.monotonic() + self.pause
            return False
        log.info("%s: status 0 in %.1f s: %s", self.word, passed, said)
        self.pause = 0.0
        self.due = time.monotonic() + self.every
        return True

    def _wait_longer(self) -> None:
        self.pause = min(max(self.pause * 2, 1.0), self.longest)
        self.due = self.started + self.pause


class Watch:
    """What the guard remembers from one look to the next."""

    def __init__(self, interval: float) -> None:
        self.lock = Task("lock", 0.0, 60.0)
        self.save = Task("save", interval, 300.0)
        self.push = Task("push", interval, 1800.0)
        self.settled: set[str] = set()  # dead sessions after which it was locked: a read-only disk keeps them
        self.said = self.save.due  # when to say next that there is nothing to do

    def settle(self, log: Any) -> bool:
        """See what has ended; whether anything still runs."""
        self.lock.settle(log)
        if self.save.settle(log) and not self.push.pause:
            self.push.due = 0.0
        if self.push.settle(log):
            note_guard(success=int(time.time()))
        return any(task.process for task in (self.lock, self.save, self.push))


def note_guard(**facts: object) -> None:
    """Note when the guard last did its work, or when and why it last did not."""
    with contextlib.suppress(OSError):
        write_whole(Path(GUARD_NOTES), json.dumps({**read_json(Path(GUARD_NOTES)), **facts}).encode())


def look_after(config: Config, vault: Vault, folder: Path, watch: Watch, log: Any) -> None:
    """One look of the guard: end dead sessions, lock after the last, save and push in time."""
    watch.settle(log)
    dead, alive = end_dead_sessions(folder)
    dead = [lease for lease in dead if lease.stem not in watch.settled]
    if not is_open(vault):
        clear_up(config, vault, dead, watch, log)
        return
    if alive:
        forget(dead)  # who leaves last locks
    if watch.lock.process:
        return
    overdue = False
    if config.vault_autolock:
        overdue = time.time() - last_sign_of_life(vault, folder) > config.vault_autolock * 60
    if overdue or (dead and not alive):
        if time.monotonic() < watch.lock.due:
            return
        if overdue:
            watch.lock.start("--yes")  # nobody is there who could be asked
        else:  # which pushes as well, as the last session would have done
            watch.lock.start(f"--leaving={GUARD}")
    elif config.sync_interval:
        keep_in_step(config, vault, watch, log)


def clear_up(config: Config, vault: Vault, dead: Sequence[Path], watch: Watch, log: Any) -> None:
    """With a locked vault: clear up what killed ones have left, in RAM and in the run folder."""
    watch.lock.pause = watch.lock.due = 0.0
    now = time.monotonic()
    if now >= watch.said:
        log.debug("the vault is locked: nothing to do")
        watch.said = now + config.sync_interval
    if not dead and mounted_at(vault.transit) is None:
        return
    # An unlock or a lock that is under way holds the lock; then the next look will do.
    with contextlib.suppress(Busy), exclusive(vault, wait=0):
        if not is_open(vault):
            destroy_transit(vault)
            forget(dead)
            watch.settled.update(lease.stem for lease in dead)


def keep_in_step(config: Config, vault: Vault, watch: Watch, log: Any) -> None:
    """Save if something changed, push if the storage has not got what is sealed.

    Each has its own pause after a failure: a storage that cannot be reached keeps nobody from saving.
    """
    now = time.monotonic()
    if watch.save.process is None and now >= watch.save.due:
        watch.save.due = now + config.sync_interval  # also where it cannot be told
        try:
            if has_changed(vault, log):
                watch.save.start()
        except Busy:
            watch.save.due = now
    if watch.save.process or watch.push.process or now < watch.push.due:
        return
    watch.push.due = now + config.sync_interval
    if wants_push(config, vault):
        watch.push.start()
    else:
        watch.push.pause = 0.0
        log.debug("nothing to do")
        if not watch.save.pause:
            note_guard(success=int(time.time()))


def has_changed(vault: Vault, log: Any) -> bool:
    """Whether the open vault holds what the sealed file does not, and a guard may save it."""
    with exclusive(vault, wait=0):
        if not is_open(vault) or not is_unsealed(vault):
            return False
        if go_is_sealed(vault):
            log.debug("not saved: the first save over a vault of Go TazPod is for a person to start")
            return False
    return True


def wants_push(config: Config, vault: Vault) -> bool:
    """Whether the storage lacks what is sealed; a conflict waits for a person (see `tell_sync`)."""
    base = base_of(vault, config)
    if "conflict" in base or not (base or uses_storage(config, vault)):
        return False
    return sealed_digest(vault) not in ("", base.get("digest"))


def guard_log() -> Any:
    """The log of the guard: UTC, level, what; a second file when it is longer than 1 MB."""
    import logging.handlers

    log = logging.getLogger("tazpod")
    handler = logging.handlers.RotatingFileHandler(LOG_PATH, maxBytes=1_000_000, backupCount=1)

    class OneLine(logging.Formatter):
        """A record in one line that a terminal shows and does not obey, whoever's words are in it."""

        def format(self, record: logging.LogRecord) -> str:
            return plain(super().format(record))

    form = OneLine("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    form.converter = time.gmtime
    handler.setFormatter(form)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    if OPTIONS.debug:
        log.setLevel(logging.DEBUG)
    return log


def guard(config: Config, vault: Vault, *, tick: float = 1.0) -> None:
    """Watch until SIGTERM, which lets what is under way end first.

    One in a container: another ends at once.  This one begins anew when there is a newer tool, or when
    its lock was removed with the run folder.
    """
    folder = private_folder(Path(POD_RUN))
    watch = Watch(config.sync_interval)
    own = tool_stamp()
    ended: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda which, _: ended.append(which))
    with contextlib.ExitStack() as stack:
        try:
            # A second's patience: whoever only looks at the lock holds it for a moment.
            held = stack.enter_context(locked_file(folder / GUARD_LOCK, "guarding", wait=1.0))
        except Busy:
            return
        log = guard_log()
        log.info("started")
        while True:
            try:
                if not ended:
                    look_after(config, vault, folder, watch, log)
            except (TazpodError, OSError) as error:
                log.error("%s", error)
                note_guard(failed=int(time.time()), error=str(error))
            if not watch.settle(log):
                if ended:
                    log.info("ended by signal %d", ended[0])
                    return
                if not is_same_file(folder / GUARD_LOCK, held):
                    break
                if tool_stamp() != own and capture([POD_LAUNCHER, "--version"]).code == 0:
                    break  # one that was cut off while it was put there is not gone on with
            time.sleep(tick)
        time.sleep(tick)  # until all of the newer one is there
    os.execv(POD_LAUNCHER, ["tazpod", GUARD_WORD])


# ── 10. commands ──────────────────────────────────────────────────────────────────────────


def here() -> Path:
    """The folder that a word is about."""
    return OPTIONS.folder or Path.cwd()


def project_folder() -> Path:
    """The project around this folder."""
    if in_pod():
        return Path(WORKSPACE)
    project = find_project(here())
    if project is None:
        raise TazpodError(f"there is no TazPod project at or above {here()}", "tazpod init")
    return project


# What a word does to a project: see `the_project`.
ACTS = "acts"
ENDS = "ends"
LOOKS = "looks"


def request_in_pod(project: Path) -> Request:
    """In a container: the config that was approved when it was set up, whatever config.yaml says by now.

    That is written by whoever gives the project a new version, and by every program in here, and what it
    says may run with the vault open, or send it away.  Only what needs no approval is taken from there.
    """
    noted = noted_by_root(POD_CONFIG)
    was_set_up = bool(noted) or os.path.lexists(POD_CONFIG) or os.path.lexists(POD_MADE)
    for _ in range(20):
        if noted or not was_set_up:
            break
        time.sleep(0.05)  # it may just be put there anew
        noted = noted_by_root(POD_CONFIG)
    approved = noted.get("settings", {})
    settings = {"container_name": noted.get("name", legal_name(project.name)), **approved}
    config = approved_config(project, Approval(settings, aws_named=noted.get("aws_named", False)))
    try:
        text = config_text(project)
        if digest_of(text.encode()) == noted.get("text"):
            return Request(config, text, [], [], True)
        asked, warnings = parse_config(text, project)
    except (TazpodError, OSError) as error:
        if not was_set_up:
            raise
        return Request(config, "", [f"{error}; what was approved before counts"], [], True)
    if not was_set_up:
        return Request(asked, text, warnings, [], True)
    changes = [c.name for c in changes_between(asked, approved) if re.fullmatch(POD_GOES_BY, c.name)]
    where = f"{CONFIG_PATH}: {', '.join(changes)}"
    if changes and not noted:
        warnings.append(
            f"{where}: it is not known here what was approved, so it does not count: tazpod up, outside"
        )
    elif changes and os.environ.get("TAZPOD_SESSION"):  # what is typed on the host is told there
        warnings.append(f"{where}: not as it was approved, so it does not count: on the host, tazpod trust")
    free = {KEYS[key].field: getattr(asked, KEYS[key].field) for key in NEEDS_NO_APPROVAL}
    return Request(config._replace(**free), text, warnings, [], True)


def the_project(what: str = ACTS, project: Path | None = None) -> Config:
    """The config of the project around this folder: the one gate between config.yaml and this host.

    A word that acts gets past it only when all that config.yaml asks for is approved; one that ends
    things (save, lock, down) goes by what was approved last; one that only looks, or only shows what
    it would do, takes the file as it is, and nothing of the host's goes along.  Inside the container
    what was approved when it was set up counts.
    """
    project = project or project_folder()
    if in_pod():
        return as_made(take_request(request_in_pod(project)))
    owners = owners_of(project)
    if what == ENDS:
        return config_to_end(project, owners)
    request = read_request(project, owners)
    if what == ACTS and not OPTIONS.dry_run:
        request = approve_request(request)
    elif what == ACTS and request.changes:
        say(f"{CONFIG_PATH} asks for what was not approved, so this comes first: tazpod trust")
    return take_request(request)


def init_project(project: Path, image: str = "", name: str = "") -> None:
    """Write the envelope; what is there already stays as it is."""
    for value, pattern, flag in ((image, IMAGE_NAME, "--image"), (name, CONTAINER_NAME, "--name")):
        if value and not re.fullmatch(pattern, value):
            raise UsageError(f"{flag}: no engine accepts {value!r}")
    owners = {os.lstat(project).st_uid, os.geteuid()}  # root makes what is missing as that owner
    if os.path.lexists(project / ENVELOPE):
        owners = owners_of(project)
    private_folder(project / ENVELOPE)
    if not OPTIONS.dry_run:
        refuse_strangers(project / ENVELOPE, os.lstat(project / ENVELOPE).st_uid, owners)
    private_folder(project / ENVELOPE / "vault")
    remember_project(project)
    image = image or DEFAULT_IMAGE
    name = name or free_name(project)
    written = []
    text = CONFIG_TEMPLATE.format(image=image, name=name, prefix=free_prefix(project, name))
    for path, content in (
        (project / CONFIG_PATH, text),
        (project / DOCKERFILE_PATH, DOCKERFILE),
        (project / ENVELOPE / ".gitignore", GITIGNORE),
    ):
        if os.path.lexists(path):
            say(f"{path.relative_to(project)} is there already and stays as it is")
        else:
            write_whole(path, content.encode())
            progress(f"wrote {path.relative_to(project)}")
            written.append(content)
    if text in written:  # so nobody is asked about it, nor about the Dockerfile when another version wrote it
        config = Config(project, name, image)
        dockerfile = digest_of(DOCKERFILE.encode()) if DOCKERFILE in written else ""
        owner = os.lstat(project).st_uid
        if not OPTIONS.dry_run:
            owner = os.lstat(project / ENVELOPE).st_uid
        write_approval(project, Approval(settings_of(config), dockerfile=dockerfile, owner=owner))


def cmd_init(args: argparse.Namespace) -> int:
    """create .tazpod/ in this folder"""
    init_project(here(), args.image, args.name)
    return OK


def pod_folder(config: Config) -> str:
    """The folder of the container that shows the current one."""
    return str(WORKSPACE / here().relative_to(config.project))


def cmd_enter(args: argparse.Namespace) -> int:
    """start what is needed, unlock, open a shell; save and lock when it ends"""
    project = find_project(here())
    if project is None:
        project = here()
        if not confirm(f"There is no TazPod project here. Start one in {here()}?"):
            raise TazpodError(f"there is no TazPod project at or above {here()}", "tazpod init")
        init_project(project)
    config = the_project(project=project)
    return enter(config, pod_folder(config), args.no_vault)


def given_passphrase(args: argparse.Namespace) -> bytes | None:
    """The passphrase of --passphrase-fd, where that is given; a dry run needs none, and reads none."""
    fd = getattr(args, "passphrase_fd", None)
    if fd is None:
        return None
    if OPTIONS.dry_run:
        return b""
    return read_passphrase(fd)


def command_of(args: argparse.Namespace) -> list[str]:
    """What `run` is to run."""
    words: list[str] = args.command
    if words[:1] == ["--"]:
        words = words[1:]
    if not words:
        raise UsageError("there is no command to run", "tazpod run -- ls -la")
    return words


def files_for(args: argparse.Namespace) -> list[str]:
    """What of the vault `run` is to give to its command, as the pod reads it: NAME=FILE or =FILE."""
    files = [f"={file}" for file in args.env_file]
    for text in args.env:
        name, _, file = text.partition("=")
        if not re.fullmatch(VARIABLE, name):
            raise UsageError(f"--env {text}: must be NAME=FILE")
        files.append(f"{name}={file}")
    for text in files:
        file = text.partition("=")[2]
        if not re.fullmatch(IN_VAULT, file):
            raise UsageError(f"{file!r} is no file of the vault", "its path in ~/secrets: keys/token, say")
    return files


def cmd_run(args: argparse.Namespace) -> int:
    """run a command in the container, in this folder of it; its exit status"""
    words = command_of(args)
    files = files_for(args)
    config = the_project()
    passphrase = given_passphrase(args)
    required = args.require_vault or bool(files)
    if required:
        must_have_vault(config)
    command = Command(words, pod_folder(config), files, required)
    return run_inside(config, command, passphrase, args.new)


def vault_shown(name: str, pod: Container) -> str:
    """`open`, `locked`, `-` where there is no vault or nobody can tell; `moving` with secrets still in RAM.

    That is an unlock or a lock under way, or what is left of a killed one.
    """
    project = Path(str(pod.project))
    try:
        config = Config(project, name)
        with contextlib.suppress(TazpodError, OSError, UnicodeDecodeError):
            config = parse_config(read_shared(project / CONFIG_PATH).decode(), project)[0]
        config = config_of(config, pod)._replace(program=pod.engine)
        if not config.ghost_mode or pod.status == "paused":
            return "-"
        if seen_to_be_open(config, pod):
            return "open"
        places: list[str] = []
        if pod.running:
            places = places_with_secrets(config, pod)
        if config.secrets in places:
            return "open"
        if places:
            return "moving"
        return "locked"
    except (TazpodError, OSError, UnicodeDecodeError):
        return "-"


def pod_row(name: str, pod: Container) -> dict[str, Any]:
    """What `list` tells of one pod."""
    project = str(pod.project)
    return {
        "name": name,
        "state": pod.status,
        "vault": vault_shown(name, pod),
        "ports": list(pod.ports),
        "project": project,
        "gone": not os.path.isdir(project),
    }


def cmd_list(args: argparse.Namespace) -> int:
    """list the pods on this engine"""
    rows = [pod_row(name, pod) for name, pod in sorted(find_pods().items())]
    if args.json:
        emit_json(rows)
        return OK
    if not rows:
        say("there is no pod on this engine")
        return OK
    lines = [("NAME", "STATE", "VAULT", "PORTS", "PROJECT")]
    for row in rows:
        project = row["project"]
        if row["gone"]:
            project += "  (this folder is gone)"
        ports = ", ".join(row["ports"]) or "-"
        lines.append((row["name"], row["state"], row["vault"], ports, project))
    widths = [max(map(len, column)) for column in zip(*lines)]
    for cells in lines:
        emit("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
    return OK


def name_in_home(path: str, home: Path) -> str:
    """A path of the home, as it was typed, relative to it."""
    name = os.path.relpath(home / path, home)
    if not re.fullmatch(IN_HOME, name):
        raise UsageError(f"{path}: is no file or folder of the home that can be moved")
    return name


def digest_of_names(folder: Path, names: Sequence[str]) -> str:
    """A digest of some of what lies in a folder, with all below it: as `survey` makes one of the vault."""
    walk = Walk(folder)
    walk.pending = []
    for name in names:
        walk.take_in(os.fsencode(name))
    while walk.pending:
        walk.look_into(walk.pending.pop())
    return str(walk.digest.hexdigest())


def adopt_into_vault(vault: Vault, names: Sequence[str]) -> None:
    """Move what the envelope has of some folders into the open vault.

    The vault is in RAM alone, so nothing leaves the disk before it was copied, sealed and compared.
    """
    for name in names:
        kept = Path(WORKSPACE, ENVELOPE, name)
        if mounted_at(vault.home / name) is None or not is_open(vault):
            raise VaultError(f"~/{name}: is not shown by an open vault", "tazpod lock, then tazpod unlock")
        if kept.is_symlink() or not kept.is_dir():
            raise TazpodError(f"{kept}: is no folder, so there is nothing to move")
        target = vault.mount / name
        moved = os.listdir(kept)
        twice = {*moved} & {*os.listdir(target)}
        # A move that was cut off has left the same on both sides.
        if twice and (twice != {*moved} or digest_of_names(kept, moved) != digest_of_names(target, moved)):
            raise TazpodError(f"{kept} and {target} hold the same names", "move one of them away")
        if not twice:
            succeed(["cp", "-a", "-n", "-T", "--", str(kept), str(target)], f"{kept} could not be copied")
    save_and_say(vault)
    for name in names:
        kept = Path(WORKSPACE, ENVELOPE, name)
        moved = os.listdir(kept)
        if not OPTIONS.dry_run and digest_of_names(kept, moved) != digest_of_names(vault.mount / name, moved):
            raise TazpodError(f"{kept} changed while it was moved", "end what writes there, then again")
        succeed(["rm", "-r", "-f", "--", str(kept)], f"{kept} could not be removed")


def cmd_adopt(args: argparse.Namespace) -> int:
    """move files or folders of the home to where they outlive the container"""
    config = the_project()
    if not in_pod():
        names = [name_in_home(path, home_folder()) for path in args.paths]  # the shell has expanded ~/
        config, _ = ensure_up(config)
        return pod_command(config, ["adopt", *names])
    home = Path(config.home)
    names = [name_in_home(path, home) for path in args.paths]
    bound = [name for name in names if name in config.binds]
    if bound:
        adopt_into_vault(pod_vault(config), bound)
    for name in names:
        place = home / name
        kept = Path(WORKSPACE, ENVELOPE, name)
        if name in bound:
            progress(f"~/{name} is in the vault now, and no longer in {ENVELOPE}/")
        elif name not in config.links:
            line = json.dumps([*config.identity, name], ensure_ascii=False)  # it stands for the whole list
            raise UsageError(f"~/{name}: is not named in the config", f"in {CONFIG_PATH}: identity: {line}")
        elif place.is_symlink() and os.readlink(place) == str(kept):
            say(f"~/{name} is in {ENVELOPE}/ already")
        else:
            move_into(place, kept)
            link_to(place, str(kept))
            progress(f"~/{name} is in {ENVELOPE}/ now, and outlives the container")
    return OK


def cmd_up(args: argparse.Namespace) -> int:
    """make the container run; --recreate makes it anew"""
    config = the_project()
    if args.recreate:
        replace_container(config, args.force)
    config, container = ensure_up(config, tell=True)
    if host_vault(config).marker.exists():
        observe(config, container)  # which tells what was lost when it stopped
    docker(guard_argv(config))
    progress(f"the container {config.container_name} is running ({container.image})")
    return OK


def places_with_secrets(config: Config, container: Container) -> list[str]:
    """Where in a running container, whatever it is made with, memory lies at a place of secrets.

    Elsewhere, and in other mount namespaces, it counts by its name: they may be another container's.
    """
    # Its own namespace, an empty line, each other; a process may end meanwhile.
    look = "cat /proc/self/mountinfo && echo && cat /proc/[0-9]*/mountinfo 2> /dev/null || :"
    result = capture([config.program, "exec", container.name, "sh", "-c", look])
    if result.code != 0:
        if re.search("executable file .*not found", result.err + result.out.decode(errors="replace")):
            return []  # an image without a shell has never held a vault
        raise engine_error(result)
    own, _, others = result.out.decode(errors="surrogateescape").partition("\n\n")
    mounts = parse_mountinfo(own)
    if not mounts:
        raise TazpodError(f"the container {container.name} does not show what is mounted in it")
    placed = [mount for mount in mounts if lies_at_secrets(mount)]
    name = ram_name(container.id)
    moved = [mount for mount in [*mounts, *parse_mountinfo(others)] if is_open_ram(mount, name)]
    return list(dict.fromkeys(mount.point for mount in placed + moved))


def agree_to_end(count: int) -> None:
    """Before the sessions of others end with their container: ask, and go on only with a yes."""
    what = f"this ends {plural(count, 'session')} in the container"
    if OPTIONS.dry_run:
        say(what)
    elif not on_terminal() and not OPTIONS.yes:
        raise TazpodError(what, "end them first, or again with --force")
    elif not confirm(f"{what[0].upper()}{what[1:]}. Go on?"):
        raise TazpodError("nothing was ended, and the container stays")


def empty_container(config: Config, discard: bool, force: bool) -> tuple[Config, Container | None]:
    """Save and lock, before the container goes: the container, if there is one, and its config."""
    refuse_links(config)
    config, container, _ = look_for_container(config)
    if config.ghost_mode and not (container and container.in_memory):
        tell_lost(host_vault(config))
    if container is None:
        return config, None
    tell_others(config)
    alive = live_sessions(config.run_folder)
    if alive and not force:
        agree_to_end(alive)
    if container.status == "paused":
        docker([config.program, "unpause", container.name])
        container = container._replace(status="running")
        pretend(config, container)
    if container.running:
        lock_before_end(config, container, discard)
    if config.ghost_mode and not discard:
        refuse_to_lose(config, container)
    return config, container


def refuse_to_lose(config: Config, container: Container) -> None:
    """VaultError when files were written to the place of the secrets while the vault was locked.

    docker-diff(1) tells what differs from the image on the container's disk, also of one that is stopped.
    """
    looked = capture([config.program, "diff", container.name])
    if looked.code != 0:
        raise TazpodError(str(engine_error(looked)), "without this look: tazpod down --discard")
    changed = looked.out.decode(errors="surrogateescape")
    lost = re.findall(f"^[AC] ({re.escape(config.secrets)}/.*)$", changed, re.MULTILINE)
    if lost:
        raise VaultError(
            f"{', '.join(lost[:5])}: on the container's disk, not in the vault, so it stays",
            "move them away, unlock, move them back; or give them up: tazpod down --discard",
        )


def replace_container(config: Config, force: bool) -> None:
    """Make a container in place of the one of now, which goes only when the engine has taken the new one.

    Until then it is kept under another name, stopped, since a port is for one of them alone.
    """
    run_argv(config, home_folder())  # what is wrong with the config is to be known before
    found = look_for_container(config)
    image = found.image
    if not image:
        get_image(config)
        image = config.image
    aside = f"{found.config.container_name}-old"
    for name in {aside, config.container_name} - {found.config.container_name}:
        if capture([config.program, "container", "inspect", name]).code == 0:
            raise TazpodError(f"there is a container {name} already", f"{config.program} rm {name}")
    made, old = empty_container(config, discard=False, force=force)
    if old is None:
        return
    config = with_git_mounts(config)
    with locked_file(config.run_folder / UP_LOCK, "starting the container", math.inf):
        docker([config.program, "rename", old.name, aside])
        pretend(made, None)
        try:
            if old.running:
                docker([config.program, "kill", aside])
            create_container(config, image)
            started = look_for_container(config, new=True).container
            if started:
                refuse_exchanged_mounts(config, started, None)
        except BaseException:
            with uninterrupted():
                put_container_back(config, old, aside)
            raise
        docker([config.program, "rm", "-f", aside])
        forget_container(config, old)


def put_container_back(config: Config, old: Container, aside: str) -> None:
    """Give the container that could not be replaced its name again, and let it run as before."""
    failed = [act([config.program, "rename", aside, old.name])]
    if old.running and not any(leads_out(config.project, source) for source, _ in old.binds):
        failed.append(act([config.program, "start", old.id]))
        started = look_for_container(config._replace(container_name=old.name), new=True).container
        if started:
            refuse_exchanged_mounts(config, started, old._replace(status="exited"))
    failed = [result for result in failed if result.code != 0]
    if failed:
        warn(f"the container of before is kept as {aside}: {failed[0].reason}")
    else:
        say(f"the container {old.name} is as it was, with the vault locked")


def lock_before_end(config: Config, container: Container, discard: bool) -> None:
    """Save and lock the vault of a running container; an error when anything is left in its memory."""
    if config.ghost_mode and asked_if_open(config, strict=not discard):
        if not discard and not is_installed(config, container):
            ensure_up(config)  # else a tazpod of the image may answer, which saves nothing
        words = ["lock"]
        if discard:
            words.append("--discard")
        if pod_command(config, words) != 0 and not discard:
            raise VaultError(
                "the vault could not be saved and locked, so the container stays",
                "tazpod down --discard gives up what changed since the last save",
            )
    if discard or OPTIONS.dry_run:
        return
    left = places_with_secrets(config, container)
    if left:
        raise VaultError(
            f"secrets may be in the memory of the container, at {', '.join(left)}, so it stays",
            "tazpod lock; or give them up: tazpod down --discard",
        )


def tell_others(config: Config) -> None:
    """Name the containers of this project that a word has not looked at."""
    for other in other_containers(config):
        end = way_to_end(config, other, "down")
        warn(f"the container {other.name} belongs to this project too; {end}")


def cmd_down(args: argparse.Namespace) -> int:
    """save and lock, then stop and remove the container"""
    config = the_project(ENDS)
    config, container = empty_container(config, args.discard, args.force)
    if container:
        stop_container(config, container)
        progress(f"the container {container.name} is removed; workspace and sealed vault stay")
    else:
        say(f"there is no container {config.container_name}")
    return OK


def cmd_build(args: argparse.Namespace) -> int:
    """build the image from its Dockerfile"""
    build_image(the_project())
    return OK


def forwarded(word: Callable[[argparse.Namespace, Config], int]) -> Callable[..., int]:
    """A word of the vault: runs in the pod; typed on the host, it is forwarded there."""

    def command(args: argparse.Namespace) -> int:
        ends = args.word in ("lock", "save")
        config = the_project(ENDS if ends else ACTS)
        if in_pod():
            must_have_vault(config)
            return word(args, config)
        if ends or not config.ghost_mode:
            config, container, _ = look_for_container(config)
            config = with_vault_of(config, container)
            must_have_vault(config, container)
            if ends and not (container and container.in_memory):
                return nothing_open(config, container, args.word)
        passphrase = given_passphrase(args)
        if not (ends and container and container.running and is_installed(config, container)):
            config, container = ensure_up(config)
            must_have_vault(config, container)
        code = pod_command(config, args.forward, passphrase)
        if code in EXEC_CUT:
            tell_gone(config)
        if args.word == "lock" and code == OK and len(read_records(config.project)) > 1:
            tell_others(config)
        return code

    command.__doc__ = word.__doc__
    return command


def must_have_vault(config: Config, container: Container | None = None) -> None:
    """UsageError for a project, or a container, that was made without a vault."""
    if config.ghost_mode:
        return
    if container is None:
        raise UsageError("features.ghost_mode is false: this project has no vault")
    what = f"the container {container.name} was made with features.ghost_mode: false, so it has no vault"
    raise UsageError(what, "tazpod up --recreate makes it anew")


def with_vault_of(config: Config, container: Container | None) -> Config:
    """The config with a vault where one shows in a container of which this host remembers nothing."""
    if config.ghost_mode or container is None or not container.running:
        return config
    if read_records(config.project).get(container.id):
        return config
    return config._replace(ghost_mode=bool(places_with_secrets(config, container)))


def nothing_open(config: Config, container: Container | None, word: str) -> int:
    """The end of `lock` or `save` where the container of this project does not run."""
    others = other_containers(config) if container else []  # without one, `look_for_container` has seen to it
    for other in others:
        if other.in_memory:
            what = f"the container {other.name} belongs to this project too, and may hold its open vault"
            raise VaultError(what, way_to_end(config, other, word))
    if word == "save":
        raise VaultError("the vault is locked: there is nothing to save", "tazpod")
    say("the vault is locked already")
    return OK


def passphrase_for(args: argparse.Namespace, ask: Callable[[], bytes]) -> bytes:
    """The passphrase of --passphrase-fd, or the one that is asked for; a dry run needs none."""
    given = given_passphrase(args)
    if given is None and OPTIONS.dry_run:
        return b""
    if given is None:
        return ask()
    return given


def amount(tree: Tree) -> str:
    """How much is in a vault, for people."""
    return f"{plural(tree.files, 'file')}, {bytes_text(tree.size)}"


def plural(count: int, noun: str) -> str:
    """So many of something."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}s"


@forwarded
def cmd_unlock(args: argparse.Namespace, config: Config) -> int:
    """open the vault into RAM"""
    vault = pod_vault(config)
    folder = Path(POD_RUN)
    if is_open(vault):
        start_guard(folder)
        say("the vault is open already")
        return OK
    forget(end_dead_sessions(folder)[0])  # the guard is not to lock after those
    start_guard(folder)  # first: it clears up after an unlock that is killed
    must_be_wanted(folder, args.session)
    prove_ram(vault)
    fresh = not has_sealed(vault)
    if fresh:
        agree_to_begin(config, vault, args)
        say("this starts a new, empty vault: choose its passphrase")
    ask = way_to_ask(fresh, at_entry=bool(args.session))
    for left in reversed(range(1 if args.passphrase_fd is not None else ATTEMPTS)):
        passphrase = passphrase_for(args, ask)
        if not passphrase and not OPTIONS.dry_run:
            say("the vault stays locked")
            return OK
        try:
            must_be_wanted(folder, args.session)
            tree = unlock(vault, passphrase, new=fresh)
            break
        except WrongPassphrase as error:
            if not left:
                hint = "the sealed vault is untouched; try again"
                raise VaultError(f"{vault.sealed}: {error}", hint) from None
            say(str(error))
    try:
        must_be_wanted(folder, args.session)  # again: its host side may have died meanwhile
    except VaultError:
        lock(vault)
        raise
    progress(f"the vault is open at {vault.mount} ({amount(tree)})")
    return OK


def way_to_ask(fresh: bool, at_entry: bool) -> Callable[[], bytes]:
    """How to ask for the passphrase of an unlock: at entry an empty answer leaves the vault locked."""
    if fresh:
        return ask_new_passphrase
    if at_entry:
        return partial(ask_passphrase, "Passphrase (empty: stay locked)", or_none=True)
    return ask_passphrase


def must_be_wanted(folder: Path, session: str) -> None:
    """VaultError when the session that asks for an unlock has lost its host side."""
    if OPTIONS.dry_run:
        return  # that of a dry run holds no lease
    path = sessions(folder).get(session)
    if session and (path is None or not is_alive(path)):
        raise VaultError("the vault stays locked: whoever asked for it has gone", "tazpod unlock")


def agree_to_begin(config: Config, vault: Vault, args: argparse.Namespace) -> None:
    """Before a new vault is started: was that meant?  Over what is left of another one --yes is no answer."""
    lost = missing_vault(vault)
    if lost:
        warn(f"{vault.sealed} is missing, but there was a sealed vault here: {FOUND_AGAIN[lost]}")
        if not args.new:
            asked = on_terminal() and not OPTIONS.yes and args.passphrase_fd is None
            if not asked or not confirm("Start a new, empty vault nevertheless?"):
                raise VaultError(
                    "no vault was started", f"{FOUND_AGAIN[lost]}; a new one: tazpod unlock --new"
                )
        if lost == "storage":
            synced(vault, config, "", "")  # so that no push puts the new one in the place of the old
    elif args.passphrase_fd is not None and not args.new:
        raise VaultError("there is no sealed vault to open", "tazpod unlock --new starts a new, empty one")


def start_guard(folder: Path) -> None:
    """Start the guard in the background, where none runs."""
    if is_alive(folder / GUARD_LOCK):
        return
    launch([POD_LAUNCHER, GUARD_WORD], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True)


def agree_to_upgrade(leaving: bool = False) -> None:
    """Before the first save over a Go vault: say what that means, and ask.

    Where nobody can be asked, only what ends a session goes on: else its secrets would stay open.
    For one who leaves, Ctrl-C is a no, and no status of a save that was cut off.
    """
    say(f"Go TazPod cannot read what is saved from now on; its file stays as {GO_NAME}")
    if leaving and not on_terminal():
        return
    hint = "the vault stays open and the sealed file as it was"
    try:
        if confirm("Save in the new format?"):
            return
    except KeyboardInterrupt:
        if not leaving:
            raise
    if not on_terminal():
        raise VaultError("not saved", f"{hint}; --yes agrees")
    raise Declined("not saved", hint)


def save_and_say(vault: Vault, force: bool = False, leaving: bool = False) -> None:
    """Save what changed, and say in one line what was done."""
    tree = save(vault, force=force, agree=partial(agree_to_upgrade, leaving))
    if tree:
        progress(f"saved ({amount(tree)})")
    else:
        say("nothing changed since the last save")


@forwarded
def cmd_save(args: argparse.Namespace, config: Config) -> int:
    """seal what is in the open vault"""
    save_and_say(pod_vault(config), args.force)
    return OK


@forwarded
def cmd_lock(args: argparse.Namespace, config: Config) -> int:
    """save what changed, then take the vault out of RAM"""
    folder = Path(POD_RUN)
    try:
        code = save_and_lock(args, config, folder)
        tell_on_disk(pod_vault(config))
        return code
    except NothingOpen:  # the guard, or another terminal, was faster: it has saved and locked
        say("the vault is locked already")
        return OK
    except Declined as error:
        if not args.leaving:
            raise
        complain(error)
        return DECLINED
    finally:
        if args.leaving:
            start_guard(folder)  # which goes on where this failed


def save_and_lock(args: argparse.Namespace, config: Config, folder: Path) -> int:
    """What `lock` does, for a person, for a session that ends, and for the guard."""
    vault = pod_vault(config)
    if args.leaving:
        if args.leaving != GUARD and not (folder / UP_LOCK).exists():
            time.sleep(2 * WATCH_PAUSE)  # the run folder was removed: the others make their leases anew
        dead, alive = end_dead_sessions(folder, args.leaving)
        if args.leaving == GUARD and not dead:
            return OK  # somebody has dealt with them meanwhile
        if alive:
            say(f"the vault stays open: {plural(alive, 'more session')}")
            return OK
    if not is_open(vault):
        lock(vault)  # what a killed unlock or lock may have left in RAM
        if not args.leaving:
            say("the vault is locked already")
        return OK
    before_lock(config.pre_lock)
    wanted = None
    if args.leaving:
        wanted = partial(live_sessions, folder, args.leaving)
    holders = None
    if args.discard:
        progress("what changed since the last save is given up")
        holders = lock(vault)
    for _ in range(ATTEMPTS):
        if holders is None:
            save_and_say(vault, leaving=bool(args.leaving))
            if args.leaving and config.push_on_exit:
                push_before_leaving(config, vault)
            holders = lock(vault, saved=True, wanted=wanted)
            if holders is None and wanted and wanted():
                say("the vault stays open: a session has come")
                return OK
    if holders is None:
        raise VaultError(
            "something keeps writing into the vault", "end it, or give it up: tazpod lock --discard"
        )
    if holders:
        warn(f"still in the vault when it was locked: {', '.join(holders)}")
    progress("the vault is locked")
    return OK


def before_lock(command: str) -> None:
    """Run hooks.pre_lock with the vault still open; whatever becomes of it, the lock goes on."""
    import subprocess

    if not command:
        return
    started = []
    code = OK
    try:
        process = launch(["bash", "-lc", command], stdin=DEVNULL, stdout=2, stderr=2, cwd=WORKSPACE)
        if process:
            started.append(process)
            code = process.wait(timeout=TIME_LIMIT)
        if code != 0:
            warn(f"hooks.pre_lock ended with status {code}")
    except subprocess.TimeoutExpired:
        warn(f"hooks.pre_lock did not end within {TIME_LIMIT:g} seconds")
    except TazpodError as error:
        warn(f"hooks.pre_lock: {error}")
    finally:
        _reap(started)


def push_before_leaving(config: Config, vault: Vault) -> None:
    """A last push with a bounded wait, where this project has to do with the storage."""
    base = base_of(vault, config)
    if sealed_digest(vault) == base.get("digest") or "conflict" in base:
        return
    try:
        if not uses_storage(config, vault):
            return
        result = act([POD_LAUNCHER, "push"], limit=EXIT_LIMIT)
    except TazpodError as error:
        say(f"saved here, but not pushed: {error}")
        return
    if result.code == 0:
        progress("pushed")
    else:
        progress(f"saved here, but not pushed: {result.reason}")


@forwarded
def cmd_push(args: argparse.Namespace, config: Config) -> int:
    """send the sealed vault to the storage"""
    vault = pod_vault(config)
    named_storage(config, vault)
    if push(config, vault, force=args.force):
        progress(f"pushed to {config.aws_bucket} ({vault.sealed.stat().st_size} bytes)")
    else:
        say(f"{config.aws_bucket} has this vault already")
    return OK


@forwarded
def pull_vault(args: argparse.Namespace, config: Config) -> int:
    """Bring the vault from the storage."""
    vault = pod_vault(config)
    named_storage(config, vault)
    keep_mine = args.keep_mine and has_sealed(vault)
    done = pull(config, vault, keep_mine=keep_mine, force=args.force)
    if done is None:
        if not base_of(vault, config).get("digest"):
            synced(vault, config, "", "")
        complain(StorageError(f"{config.aws_bucket} holds no vault", "tazpod push puts this one there"))
        return ABSENT
    if not done:
        say(f"{config.aws_bucket}: nothing new")
    elif keep_mine:
        progress(f"{config.aws_bucket}: theirs is in the history; the next push replaces it")
    else:
        progress(f"{config.aws_bucket}: pulled")
    return OK


def cmd_pull(args: argparse.Namespace) -> int:
    """bring the vault from the storage; `pull image` pulls the image"""
    if args.what == "vault":
        return pull_vault(args)
    if in_pod():
        raise UsageError("pull image is for the host; this is inside the container")
    config = the_project()
    pull_image(config)
    if find_container(config):
        say("the container still has the image it was made from: tazpod down, then tazpod up")
    return OK


@forwarded
def cmd_setup_storage(args: argparse.Namespace, config: Config) -> int:
    """make the bucket: private, versioned, encrypted"""
    storage = named_storage(config, pod_vault(config))
    for what in make_bucket(storage):
        warn(f"{storage.bucket}: this storage does not know {what}")
    if not honours_conditions(storage):
        warn(f"{storage.bucket}: this storage ignores conditional writes: two pushes at once may lose one")
    progress(f"the bucket {storage.bucket} is ready")
    return OK


# By these a profile is another identity than its login, whatever it says of that.
OTHER_IDENTITY = {
    "role_arn",
    "source_profile",
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
}


def profile_text(config: Config, path: Path) -> str:
    """The AWS config file with the login profile that config.yaml describes; '' if it says too little.

    A profile of that name, which may have come with a clone, is taken as far as it says the same; what
    config.yaml leaves open of it is told before it is used.
    """
    text = checked_settings(path).decode()  # nothing else is copied: the path may be a link to a secret
    name = config.aws_profile
    asked = {
        "sso_start_url": config.aws_start_url,
        "sso_account_id": config.aws_account_id,
        "sso_role_name": config.aws_role_name,
    }
    found = profile_in(text, name)
    says_all = all(asked.values())
    says_same = all(value in ("", found.get(key)) for key, value in asked.items())
    if found and says_same and not (says_all and found.keys() & OTHER_IDENTITY):
        if not says_all:
            told = brief(", ".join(f"{key} {found.get(key, 'none')}" for key in (*asked, "role_arn")))
            say(f"the profile {name} comes from {path} alone: {told}")
        return text
    if not says_all:
        if found:
            raise StorageError(
                f"{path}: the profile {name} is not the one of {CONFIG_PATH}",
                "take it out of the file, or put start_url, account_id and role_name under aws_sso",
            )
        return ""
    return with_profile(text, config)


def with_profile(text: str, config: Config) -> str:
    """A file of settings for aws in which the profile of the login is that of config.yaml."""
    name = config.aws_profile
    wanted = {
        f"profile {name}": {
            "sso_session": name,
            "sso_account_id": config.aws_account_id,
            "sso_role_name": config.aws_role_name,
            "region": config.aws_region,
        },
        f"sso-session {name}": {
            "sso_start_url": config.aws_start_url,
            "sso_region": config.aws_region,
            "sso_registration_scopes": "sso:account:access",
        },
    }
    parts = re.split(r"^(?=\s*\[)", text, flags=re.MULTILINE)
    taken = {*wanted, "default"} if name == "default" else {*wanted}
    text = "".join(part for part in parts if part.strip().partition("]")[0][1:] not in taken)
    for section, values in wanted.items():
        if text:
            text = f"{text.rstrip()}\n\n"
        text += f"[{section}]\n"
        for key, value in values.items():
            text += f"{key} = {value}\n"
    return text


def profile_in(text: str, name: str) -> dict[str, str]:
    """A profile in a file of settings, with its sso-session; nothing when there is none.

    As aws finds it: quotes and spaces do not count, and the last one of a name is taken.
    """
    import configparser

    parser = configparser.RawConfigParser(default_section="", strict=False)
    parser.read_string(text)

    def last_of(kind: str, wanted: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for section in parser.sections():
            with contextlib.suppress(ValueError):  # a quote that never ends
                words = shlex.split(section)
                if words == [kind, wanted] or (kind == "profile" and words == ["default"] == [wanted]):
                    found = dict(parser[section])
        return found

    profile = last_of("profile", name)
    return {**profile, **last_of("sso-session", profile.get("sso_session", ""))}


def write_profile(config: Config, path: Path) -> bool:
    """Put the login profile into the AWS config; False if config.yaml says too little."""
    text = profile_text(config, path).encode()
    if not text:
        return False
    if not path.exists() or read_shared(path) != text:
        private_folder(path.parent)
        write_whole(path, text)
    return True


DEVICE_CODE = "--use-device-code"


def login_argvs(profile: str) -> tuple[list[str], list[str]]:
    """`aws configure sso` and `aws sso login`."""
    return aws_argv("configure", "sso", "--profile", profile), aws_argv("sso", "login", "--profile", profile)


def is_logged_in(profile: str) -> bool:
    """Whether the last login is still valid."""
    return ask_aws("configure", "export-credentials", "--profile", profile).code == 0


@forwarded
def cmd_login(args: argparse.Namespace, config: Config) -> int:
    """log in to AWS by single sign-on"""
    vault = pod_vault(config)
    profile = config.aws_profile
    login_in_ram(vault)
    for name in (".aws/sso/cache", ".aws/cli/cache"):
        make_folders(vault.home, name)  # where aws keeps what the login gives: see `aws_environment`
    ask, sso = login_argvs(profile)
    if not on_terminal() and not OPTIONS.dry_run and not is_logged_in(profile):
        raise UsageError("a login asks, and there is no terminal to ask on", "tazpod login on a terminal")
    if not write_profile(config, aws_config_file()):
        private_folder(aws_config_file().parent)
        with aws_environment() as env:
            code = run_foreground(ask, env={**env, "AWS_CONFIG_FILE": str(aws_config_file())})
        if code != 0:
            raise StorageError(f"the profile {profile} was not set up", "tazpod login tries again")
    if is_logged_in(profile):
        say(f"the login {profile} is still valid")
        return OK
    # The browser's answer could not come back into the container; older versions know no other way.
    # Asked by an option that none knows, so that nothing is done; all that is unknown is named.
    probe = ask_aws(*sso[1:], DEVICE_CODE, "--tazpod-probe")
    if not re.search("Unknown options:.*--use-device-code", probe.err):
        sso.append(DEVICE_CODE)
    with aws_environment() as env:
        code = run_foreground(sso, env=env)
    if code != 0:
        raise StorageError(f"the login {profile} failed", "tazpod login tries again")
    progress(f"logged in as {profile}")
    return OK


def must_know_passphrase(vault: Vault) -> None:
    """Ask for the passphrase in force: whoever finds an open shell must not put another in its place."""
    with exclusive(vault):
        current = settled_passphrase(vault, sealed_digest(vault))
    for _ in range(ATTEMPTS):
        if ask_passphrase("Present passphrase") == current:
            return
        say("that is not the passphrase of this vault")
    raise VaultError("the passphrase was not changed")


@forwarded
def cmd_passwd(args: argparse.Namespace, config: Config) -> int:
    """give the vault another passphrase"""
    vault = pod_vault(config)
    refuse_not_open(vault, "its passphrase stays as it is")
    if args.passphrase_fd is None and not OPTIONS.dry_run:
        must_know_passphrase(vault)
    save(vault, passphrase=passphrase_for(args, ask_new_passphrase), agree=agree_to_upgrade)
    progress("the vault has a new passphrase; versions in the history keep the one they had")
    return OK


def remote_key(args: argparse.Namespace, storage: Storage) -> str:
    """The key in the storage of what the person calls a version."""
    if not args.version:
        return storage.latest
    key = version_key(storage, args.version.replace(".tar.aes", ""))
    if not key:
        raise UsageError(
            f"{args.version!r} is not the name of a version", "tazpod history --remote lists them"
        )
    return key


@contextlib.contextmanager
def chosen_version(args: argparse.Namespace, config: Config, vault: Vault) -> Iterator[Path]:
    """A sealed file by what the person calls it; without a name, the present one."""
    if args.remote:
        storage = named_storage(config, vault)
        key = remote_key(args, storage)
        with syncing(vault) as path:
            if download(storage, path, key) is None:
                raise StorageError(
                    f"{config.aws_bucket} holds no {key}", "tazpod history --remote lists them"
                )
            yield path
    elif args.version:
        kept = kept_files(vault)
        name = args.version
        if name not in kept:
            name = name.replace(".tar.aes", "")
        if name not in kept:
            raise UsageError(f"there is no version {args.version!r}", "tazpod history lists them")
        yield kept[name]
    else:
        if not has_sealed(vault):
            raise VaultError(f"{vault.sealed}: there is no sealed vault")
        yield vault.sealed


@forwarded
def cmd_verify(args: argparse.Namespace, config: Config) -> int:
    """prove that the sealed file opens, without opening the vault"""
    vault = pod_vault(config)
    with chosen_version(args, config, vault) as path:
        count = verify(vault, path, passphrase_for(args, ask_passphrase))
    progress(f"{args.version or SEALED_NAME} opens and is whole ({count} entr{'y' if count == 1 else 'ies'})")
    return OK


@forwarded
def cmd_restore(args: argparse.Namespace, config: Config) -> int:
    """make an earlier version the sealed vault"""
    vault = pod_vault(config)
    with chosen_version(args, config, vault) as path:
        restore(vault, path, passphrase_for(args, ask_passphrase))
    progress(f"{args.version} is the sealed vault now; the one before it is in the history")
    return OK


@forwarded
def remote_history(args: argparse.Namespace, config: Config) -> int:
    """List the versions in the storage."""
    storage = named_storage(config, pod_vault(config))
    for key, version in list_history(storage).items():
        emit(f"{version_in(storage, key):<26}  {version.modified:<23}  {version.size:>10} bytes")
    return OK


def cmd_history(args: argparse.Namespace) -> int:
    """list the earlier sealed versions"""
    if args.remote:
        return remote_history(args)
    config = the_project(LOOKS)
    vault = host_vault(config)
    if in_pod():
        vault = pod_vault(config)
    rows = list(kept_files(vault).items())
    if has_sealed(vault):
        rows.append(("(present)", vault.sealed))
    for name, path in rows:
        try:
            kind = format_name(sealed_head(path))
        except VaultError:
            kind = "no sealed vault"
        info = look_at(path)
        emit(f"{brief(name):<26}  {utc(info.st_mtime)}  {info.st_size:>10} bytes  {kind}")
    if not rows:
        say("there is no sealed vault yet")
    return OK


def cmd_config(args: argparse.Namespace) -> int:
    """print every setting, and where its value comes from"""
    config = take_request(read_request(project_folder()))
    lines = setting_lines(config_text(config.project))
    for name, key in KEYS.items():
        value = getattr(config, key.field)
        if key.kind is dict:
            value = dict(value)
        shown = value
        if not isinstance(value, str):
            shown = json.dumps(value)
        origin = "default"
        if name in lines:
            origin = f"{CONFIG_PATH}:{lines[name]}"
        elif key.field == "ghost_mode" and not value:
            origin = f"{CONFIG_PATH}:{lines['ghost_mode']}"  # where older files kept it
        shown = with_spaces("; ".join(shown.splitlines()))
        emit(f"{name:<20}  {origin:<24}  {shown}".rstrip())
    for name in (*config.aws_variables, *config.proxies):
        emit(f"{name:<20}  {'environment':<24}  (handed to the container by name)")
    return OK


def fit_running_container(project: Path) -> None:
    """Set a container that runs up anew: its daemon and the end of its sessions go by what it was told."""
    if not read_records(project):
        return
    try:
        config, container, _ = look_for_container(the_project(project=project))
        if container and container.running and not is_installed(config, container):
            ensure_up(config)
    except (TazpodError, OSError) as error:
        warn(f"what runs in the container goes by it after: tazpod up ({error})")


def cmd_trust(args: argparse.Namespace) -> int:
    """show what config.yaml asks for besides what you approved, and approve it"""
    project = project_folder()
    may_approve = not args.show and not OPTIONS.dry_run
    owner = os.lstat(project / ENVELOPE).st_uid
    if may_approve and os.geteuid() != 0:
        owners_of(project)
    request = read_request(project, {owner, os.geteuid()})
    changes = list(request.changes)
    dockerfile = b""
    with contextlib.suppress(FileNotFoundError):
        dockerfile = read_shared(project / request.config.dockerfile, {owner, os.geteuid()})
        found = dockerfile_changes(dockerfile, read_approval(project) or Approval())
        changes += [change._replace(name=brief(request.config.dockerfile)) for change in found]
    git = approved_git(project)
    worktree = find_worktree(project, {owner, os.geteuid()})
    if worktree and worktree.common != git:
        changes.append(Change("git worktree", json.dumps(git), json.dumps(worktree.common)))
        git = worktree.common
    for change in changes:
        emit(f"{change.name}: {change.old} -> {change.new}")
    if may_approve:
        keep_request(request, dockerfile=digest_of(dockerfile), git=git, owner=owner)
        say("approved: tazpod goes by it from now on")
        fit_running_container(project)
    elif not changes:
        say("nothing differs from what was approved")
    return OK


def terminal_variables(folder: Path) -> dict[str, str | None]:
    """What the newest session's host side says of its terminal, as far as this container knows it.

    That is the session of the shell that asks, or the one that came after it to a shell in tmux.
    Nothing when there is no session.
    """
    living = {name: path for name, path in sessions(folder).items() if is_alive(path)}
    if not living:
        return {}
    newest = max(living.values(), key=lambda path: path.stat().st_mtime_ns)
    lease = living.get(os.environ.get("TAZPOD_SESSION", ""), newest)
    script = f'unset COLORTERM; . {POD_TOOL}/bashrc; __tazpod_take "$0"; env -0'
    said = capture(["bash", "-c", script, str(lease)]).out.decode(errors="replace")
    found = dict(item.partition("=")[::2] for item in said.split("\0"))
    known: dict[str, str | None] = {"COLORTERM": None}
    for name in ("TERM", "COLORTERM", "LANG"):
        if name in found:
            known[name] = found[name]
    return known


def cmd_env(args: argparse.Namespace) -> int:
    """print what may have changed since a shell in the container was opened"""
    if not in_pod():
        raise UsageError("env is for the shell in the container", "tazpod enter opens one")
    config = the_project()
    variables = terminal_variables(Path(POD_RUN))
    if os.environ.get("TMUX") or os.environ.get("STY"):
        variables.pop("TERM", None)  # there it is the multiplexer's
    if config.ssh_agent:
        variables["SSH_AUTH_SOCK"] = POD_AGENT
    elif os.environ.get("SSH_AUTH_SOCK") == POD_AGENT:
        variables["SSH_AUTH_SOCK"] = None
    variables |= {"HOST_CWD": os.environ["HOST_CWD"], "AWS_CONFIG_FILE": POD_AWS_CONFIG}
    if config.ghost_mode:
        variables["TAZPOD_VAULT"] = "locked"
        if is_open(pod_vault(config)):
            variables["TAZPOD_VAULT"] = "open"
        for name, file in config.vault_env:
            place = f"{config.secrets}/{file}"
            if variables["TAZPOD_VAULT"] == "open" and os.access(place, os.R_OK):
                emit(f'export {name}="$(cat {quoted(place)})"')  # the value itself is not shown
            else:
                variables[name] = None
    for name, value in variables.items():
        if value is None:
            emit(f"unset {name}")
        else:
            emit(f"export {name}={quoted(value)}")
    return OK


# -- status


class Facts(NamedTuple):
    """What `status` knows; docs/status.md says what each means.  Moments are seconds of the epoch."""

    project: str
    container_name: str = ""
    container_state: str = ""  # '' in the pod itself
    container_image: str = ""
    container_image_id: str = ""
    container_ports: Sequence[str] = ()
    container_drift: Sequence[str] = ()
    container_others: Sequence[str] = ()
    container_others_end: Sequence[str] = ()
    config_unapproved: Sequence[str] = ()
    vault_used: bool = True
    vault_open: bool | None = False
    vault_open_since: int | None = None
    vault_sessions: int = 0
    vault_left_open: bool = False
    vault_remains: bool = False
    vault_on_disk: bool = False
    vault_unsaved: bool | None = False
    vault_bytes: int = 0
    vault_limit: int = 0
    vault_format: str = ""
    vault_size: int = 0
    vault_sealed_at: int | None = None
    vault_lost_since: int | None = None
    vault_missing: str = ""
    remote_state: str = "not used"
    remote_bucket: str = ""
    remote_asked_at: int | None = None
    remote_unpushed: bool = False
    remote_failed: bool = False
    remote_reason: str = ""
    remote_hint: str = ""
    identity_kind: str = "none"
    identity_profile: str = ""
    identity_expires_at: int | None = None
    daemon_running: bool = False
    daemon_success_at: int | None = None
    daemon_failed_at: int | None = None
    daemon_error: str = ""


def epoch(text: str) -> int | None:
    """A moment as we, the AWS CLI and Docker write it, in seconds of the epoch; None for another text."""
    import calendar

    shift = 0
    zone = re.search(r"([+-])(\d\d):(\d\d)$", text[19:])
    if zone:
        shift = int(zone[2]) * 3600 + int(zone[3]) * 60
        if zone[1] == "-":
            shift = -shift
    try:
        moment = time.strptime(text[:19].replace("T", " "), "%Y-%m-%d %H:%M:%S")
    except ValueError:
        return None
    return calendar.timegm(moment) - shift


def sealed_facts(config: Config, vault: Vault, opened: bool | None) -> dict[str, Any]:
    """What the files tell, on either side: what `Facts` is made from."""
    known: dict[str, Any] = {"project": str(config.project), "vault_used": config.ghost_mode}
    known["vault_open"] = False
    if not config.ghost_mode:
        return known
    known["vault_open"] = opened
    if has_sealed(vault):
        info = look_at(vault.sealed)
        known.update(vault_format="unreadable", vault_size=info.st_size, vault_sealed_at=int(info.st_mtime))
        with contextlib.suppress(VaultError):
            known["vault_format"] = format_name(sealed_head(vault.sealed))
    known["vault_missing"] = missing_vault(vault)
    # Not in the middle of an unlock, which writes the mark first.
    if opened is False and vault.marker.exists() and not (in_pod() and mounted_at(vault.transit)):
        known["vault_lost_since"] = int(look_at(vault.marker).st_mtime)
    base = base_of(vault, config)
    if base:
        known.update(remote_state="unknown", remote_bucket=config.aws_bucket)
        known["remote_asked_at"] = epoch(base.get("time", ""))
        known["remote_reason"] = "the container is down"
        if "conflict" in base:
            known.update(remote_failed=True, remote_reason="another machine has pushed")
        with contextlib.suppress(VaultError):
            known["remote_unpushed"] = sealed_digest(vault) not in ("", base.get("digest"))
    return known


def open_facts(vault: Vault) -> dict[str, Any]:
    """What the open vault tells."""
    known: dict[str, Any] = {"vault_unsaved": None}
    with contextlib.suppress(VaultError, OSError):  # it may be locked just now
        room = os.statvfs(vault.mount)
        known["vault_open_since"] = int((vault.mount / PASSPHRASE_FILE).stat().st_mtime)
        known["vault_bytes"] = (room.f_blocks - room.f_bfree) * room.f_frsize
        known["vault_limit"] = room.f_blocks * room.f_frsize
        known["vault_unsaved"] = is_unsealed(vault)
    return known


def login_expiry(vault: Vault) -> int | None:
    """When the login that the AWS CLI keeps expires; None when it keeps none."""
    moments = []
    for path in (vault.home / ".aws/sso/cache").glob("*.json"):
        kept = read_json(path)
        if "accessToken" in kept:  # not the registration of a client
            moments.append(epoch(str(kept.get("expiresAt"))) or 0)
    return max(moments, default=None)


def remote_facts(config: Config, vault: Vault, opened: bool) -> dict[str, Any]:
    """Whose credentials there are, and what the storage says to them, asked now."""
    known: dict[str, Any] = {}
    try:
        storage = storage_of(config, vault)
        expires = login_expiry(vault)
        if storage.key_id:
            known["identity_kind"] = "vault"
        elif not storage.profile:
            known["identity_kind"] = "environment"
        elif expires is not None:
            known.update(identity_kind="login", identity_profile=storage.profile, identity_expires_at=expires)
        if not uses_storage(config, vault):
            return known
        known.update(remote_state="unknown", remote_bucket=config.aws_bucket)
        if not has_credentials(storage, vault):
            known["remote_reason"] = "the vault is locked"
            if opened:
                known.update(remote_failed=True, remote_reason="there is no login", remote_hint=LOGIN_HINT)
            return known
        remote = head(storage._replace(limit=ASK_LIMIT))
        base = base_of(vault, config)
        state = compare_sides(sealed_digest(vault), base, remote)
        if remote and state in ("behind", "diverged") and gone_back(vault, base, remote):
            state = "older"
        known.update(remote_state=state, remote_asked_at=int(time.time()), remote_reason="")
        known.update(remote_unpushed=state in ("ahead", "diverged", "older"), remote_failed=False)
    except (TazpodError, OSError) as error:
        if config.aws_named:
            known.update(remote_state="unknown", remote_bucket=config.aws_bucket)
        known.update(remote_failed=True, remote_reason=str(error), remote_hint=getattr(error, "hint", ""))
    return known


def pod_facts(config: Config) -> dict[str, Any]:
    """All that the pod knows."""
    vault = pod_vault(config)
    opened = config.ghost_mode and is_open(vault)
    aside = not opened and mounted_at(vault.transit) is not None
    if config.ghost_mode and not opened and not aside:
        opened = is_open(vault)  # it may have been put back between the two looks
    told: bool | None = opened
    astray = False
    if config.ghost_mode and not opened:
        astray = bool(led_astray(vault)[0])
        if astray or is_guarded_elsewhere(vault):
            told = None
    known = sealed_facts(config, vault, told)
    if not config.ghost_mode:
        return known
    notes = read_json(Path(GUARD_NOTES))
    running = is_alive(Path(POD_RUN, GUARD_LOCK))
    known.update(daemon_running=running, daemon_error=notes.get("error", ""))
    known.update(daemon_success_at=notes.get("success"), daemon_failed_at=notes.get("failed"))
    folder = Path(POD_RUN)
    known["vault_sessions"] = live_sessions(folder)
    known["vault_remains"] = aside or astray
    known["vault_on_disk"] = bool(stray_names(vault))
    known["vault_left_open"] = opened and not known["vault_sessions"] and bool(dead_sessions(folder))
    if opened:
        known.update(open_facts(vault))
    known.update(remote_facts(config, vault, opened))
    return known


def cmd_pod_status(args: argparse.Namespace) -> int:
    """print the facts of the pod (run by status)"""
    emit(json.dumps(pod_facts(the_project())))
    return OK


def ask_pod(config: Config, container: Container, word: str) -> Any:
    """What an internal word of the pod prints as JSON, of whatever shape: root there may answer for it."""
    command = ["tazpod", word]
    if OPTIONS.dry_run:
        command.append("--dry-run")
    result = capture(exec_argv(config, command, terminal=False))
    lines = result.out[-SHARED_LIMIT:].splitlines()
    if result.code == 0 and lines:
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(lines[-1])  # a profile of the image may have said something before
    why = result.reason
    if not is_installed(config, container):
        why = "it holds another version of tazpod"
        if "fitted" not in read_records(config.project).get(container.id, {}):
            why = "it was never set up to the end from here"
        if is_alive(config.run_folder / UP_LOCK):
            why = "it is being set up just now"
    raise TazpodError(f"the container could not be asked: {why}", "tazpod up, then again")


def makes_no_sense(what: str) -> TazpodError:
    """The error for an answer of the container that is none."""
    return TazpodError(f"the container gave an answer that makes no sense: {what}", "tazpod up, then again")


# The words that status uses.  What is typed next is chosen from them, so nobody else may add one.
FACT_WORDS: dict[str, tuple[str, ...]] = {
    "vault_format": ("", "openpgp", "go", "unreadable"),
    "vault_missing": ("", *FOUND_AGAIN),
    "remote_state": ("not used", "unknown", "empty", "in sync", "ahead", "behind", "diverged", "older"),
    "remote_hint": ("", LOGIN_HINT, *STORAGE_HINTS.values()),
    "identity_kind": ("none", "login", "vault", "environment"),
}
MAYBE_UNKNOWN = ("vault_open", "vault_unsaved")  # null there says that nobody could tell


def told_facts(told: Any) -> dict[str, Any]:
    """The facts that the pod tells, each of its type and in its words, without those of the host."""
    if not isinstance(told, dict) or "vault_open" not in told:
        raise makes_no_sense("it does not tell whether the vault is open")
    known: dict[str, Any] = {}
    for name in Facts._fields:
        if name not in told or name.startswith(("container_", "config_")):  # the host knows those itself
            continue
        value = told[name]
        usual = Facts._field_defaults.get(name, "")
        if name == "remote_hint" and value not in FACT_WORDS[name]:
            value = ""  # of a fault that status knows no step for
        if value is None:
            legal = usual is None or name in MAYBE_UNKNOWN
        elif usual is None:
            legal = type(value) is int
        else:
            legal = type(value) is type(usual)
        if type(value) is int:
            legal = legal and 0 <= value < LARGEST
        if not legal or value not in FACT_WORDS.get(name, (value,)):
            raise makes_no_sense(f"{name} is {brief(str(value))!r}")
        if isinstance(value, str):
            value = brief(value)
        known[name] = value
    if known["vault_open"]:
        known.setdefault("vault_unsaved", None)  # not said to be saved unless the pod has looked
    return known


def host_facts(config: Config) -> dict[str, Any]:
    """All that the host knows, and the pod when it runs."""
    now = config
    config, container, image = look_for_container(config)
    if container and container.running:
        known = told_facts(ask_pod(config, container, STATUS_WORD))
    elif (container and container.in_memory) or is_guarded(host_vault(config)):
        # Nobody can ask a paused one, and it may be open in another container.
        known = sealed_facts(config, host_vault(config), None)
    else:
        known = sealed_facts(config, host_vault(config), False)
    known.update(project=str(config.project), container_name=config.container_name)
    known.update(container_state="absent", container_image=config.image)
    if container:
        known.update(container_state=container.status, container_image=container.image)
        known["container_ports"] = list(container.ports)
        known["container_drift"] = drift(now, container, image)
        image = container.image_id
    known["container_image_id"] = image.rpartition(":")[2][:12]
    known["config_unapproved"] = [change.name for change in read_request(config.project).changes]
    others = other_containers(config)
    known["container_others"] = [other.name for other in others]
    known["container_others_end"] = [way_to_end(config, other, "down") for other in others]
    return known


WAYS_OUT = "tazpod push (it tells the ways out)"


def troubles(facts: Facts, now: float) -> list[tuple[str, str]]:
    """What is not well, the most urgent first, each with what to type next."""
    f = facts
    expires = f.identity_expires_at
    asleep = f.container_state in ("", "absent", "created", "running", "exited")
    nothing = f.vault_used and not f.vault_format and f.vault_open is False
    stale = (f.daemon_failed_at or 0) > (f.daemon_success_at or 0)
    unknown = f.remote_state == "unknown" and f.remote_failed
    enter_again = "tazpod"
    start = "tazpod up"
    if not f.container_state:  # in the container itself
        enter_again = start = "tazpod unlock"
    lost = ""
    if f.vault_lost_since:
        lost = f"; what changed after {utc(f.vault_lost_since)} is lost"
    take = "tazpod pull"
    if f.vault_open:
        take = "tazpod lock, then tazpod pull"
    older = "; ".join(f.container_drift)
    unapproved = f"config.yaml asks for what was not approved: {', '.join(f.config_unapproved)}"
    second = "".join(f.container_others[:1])
    table = (
        (f.config_unapproved, unapproved, "tazpod trust"),
        (second, f"the container {second} belongs to this project too", "".join(f.container_others_end[:1])),
        (not asleep, f"the container is {f.container_state}", "tazpod up"),
        (f.vault_lost_since, f"the vault was open, and its memory is not there any more{lost}", enter_again),
        (f.vault_format == "unreadable", "the sealed vault cannot be read", "tazpod history"),
        (nothing and f.vault_missing, "the sealed vault is missing", FOUND_AGAIN.get(f.vault_missing, "")),
        (nothing and not f.vault_missing, "there is no vault yet", enter_again),
        (f.vault_open and not f.daemon_running, "the daemon does not run", start),
        (f.vault_remains, "secrets are in RAM: a lock or unlock is at work, or was cut off", "tazpod lock"),
        (f.vault_on_disk, "files lie on the container's disk where the secrets belong", "tazpod lock"),
        (f.vault_left_open, "a session has ended, and the vault is still open", "tazpod lock"),
        (f.vault_unsaved, "there are unsaved changes", "tazpod save"),
        (unknown and expires and expires <= now, "the login has expired", "tazpod login"),
        (f.remote_state == "behind", "the storage holds a vault that is not here", take),
        (f.remote_state == "older", "the storage holds an older vault", WAYS_OUT),
        (f.remote_state == "diverged", "both sides have changed", WAYS_OUT),
        (unknown, f"the storage: {f.remote_reason}", f.remote_hint or "tazpod push"),
        (f.remote_unpushed, "the sealed vault was not pushed", "tazpod push"),
        (f.vault_open and stale, f"the daemon failed: {f.daemon_error}", "tazpod save"),
        (f.container_drift, f"the container is older than {older}", "tazpod up --recreate"),
    )
    return [(what, step) for wrong, what, step in table if wrong]


def span(seconds: float) -> str:
    """A length of time for people, in one unit."""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return plural(int(seconds // size), unit)
    return plural(max(0, int(seconds)), "second")


def ago(what: str, moment: int | None, now: float) -> str:
    """What happened, and how long ago; nothing when it never did."""
    if moment is None:
        return ""
    return f"{what} {span(now - moment)} ago"


def vault_state(facts: Facts) -> str:
    """What the vault is, in one word; `moving` with secrets in RAM between open and locked."""
    if facts.vault_open:
        return "open"
    if facts.vault_open is None:
        return "unknown"
    if facts.vault_remains:
        return "moving"
    return "locked"


def vault_words(facts: Facts, now: float) -> list[str]:
    """What there is to know of the vault besides whether it is open."""
    words = []
    if facts.vault_open:
        words = [
            f"for {span(now - (facts.vault_open_since or now))}",
            plural(facts.vault_sessions, "session"),
            {None: "changes unknown", True: "unsaved changes", False: "all saved"}[facts.vault_unsaved],
            f"{bytes_text(facts.vault_bytes)} of {bytes_text(facts.vault_limit)}",
        ]
    if facts.vault_format:
        words.append(ago("sealed", facts.vault_sealed_at, now))
        words += [facts.vault_format, bytes_text(facts.vault_size)]
    elif facts.vault_missing:
        words.append("its file is missing")
    else:
        words.append("never sealed")
    return words


def status_lines(facts: Facts, now: float) -> list[str]:
    """The facts for people: what, its state, what else there is to know."""
    f = facts
    login = ago("expired", f.identity_expires_at, now)
    if (f.identity_expires_at or 0) > now:
        login = f"expires in {span((f.identity_expires_at or 0) - now)}"
    image = f.container_image
    if f.container_image_id:
        image = f"{image} ({f.container_image_id})"
    asked = ago("asked", f.remote_asked_at, now)
    worked = ago("last success", f.daemon_success_at, now)
    failed = ago(f"last error ({f.daemon_error})", f.daemon_failed_at, now)
    kept = {"not used": "this project keeps no copy in a storage"}.get(f.remote_state, "")
    keys = "its keys are used"
    told = {"none": "no login, and no keys for a storage", "environment": keys, "vault": keys}
    whose = told.get(f.identity_kind, "")
    rows: list[tuple[str, str, Sequence[str]]] = []
    if f.container_state:
        rows.append(("container", f.container_state, [f.container_name, image, *f.container_ports]))
    if f.vault_used:
        running = {True: "running", False: "not running"}[f.daemon_running]
        works = "starts with the container"
        if f.daemon_running:
            works = "saves, pushes and locks by itself"
        rows += [
            ("vault", vault_state(f), vault_words(f, now)),
            ("remote", f.remote_state, [f.remote_bucket, f.remote_reason, asked, kept]),
            ("identity", f.identity_kind, [f.identity_profile, login, whose]),
            ("daemon", running, [works, worked, failed]),
        ]
    wide = max((len(state) for _, state, _ in rows), default=0)
    lines = []
    for name, state, words in rows:
        lines.append(f"{name:<9}  {state:<{wide}}  {', '.join(filter(None, words))}".rstrip())
    return lines


def status_json(facts: Facts, wrong: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The facts for programs, grouped by what they are about."""
    found: dict[str, Any] = {"well": not wrong, "next": ""}
    if wrong:
        found["next"] = wrong[0][1]
    found["troubles"] = [what for what, _ in wrong]
    for name, value in facts._asdict().items():
        group, _, leaf = name.partition("_")
        if leaf:
            found.setdefault(group, {})[leaf] = value
        else:
            found[name] = value
    return found


def cmd_status(args: argparse.Namespace) -> int:
    """show container, vault, storage, login and daemon; 0 only if all is well"""
    config = the_project(LOOKS)
    now = time.time()
    if in_pod():
        facts = Facts(**told_facts(pod_facts(config)))
    else:
        facts = Facts(**host_facts(config))
    wrong = troubles(facts, now)
    if args.json:
        emit_json(status_json(facts, wrong))
    else:
        emit(*status_lines(facts, now))
        if wrong:
            emit(f"next: {wrong[0][1]}  ({wrong[0][0]})")
    if wrong:
        return UNWELL
    return OK


# -- doctor


class Check(NamedTuple):
    """One thing that `doctor` looked at: ok, advice or failure; about what; what it saw; the exact fix."""

    level: str
    name: str
    what: str
    fix: str = ""


LEVELS = ("ok", "failure", "advice")
CHECK_LIMIT = 100  # checks of the container that are shown


def check(name: str, good: object, what: str, fix: str, bad: str = "failure") -> Check:
    """A check that is ok when it is `good`."""
    if good:
        return Check("ok", name, what)
    return Check(bad, name, what, fix)


def check_engine(config: Config) -> Iterator[Check]:
    """The engine, its clock, the network, image and container."""
    what, clock = engine_facts(config)
    yield Check("ok", "engine", what)
    if not clock:
        yield Check("ok", "clock", "Podman tells none of its own")
    else:
        skew = abs((epoch(clock) or 0) - time.time())
        fix = "set the clock of the engine's machine: logins and the storage need it"
        yield check("clock", skew < 60, f"{skew:.0f} s between the engine's clock and this one", fix)
    made, container, image = look_for_container(config)
    what = f"{config.image} is here"
    if not image:
        what = f"{config.image} is not here"
    yield check("image", image, what, "tazpod pull image", "advice")
    old: list[str] = []
    if container:
        old = drift(config, container, image)
    mtu = f"the way to the internet takes {route_mtu() or 'an unknown number of'} bytes"
    narrow = [what for what in old if what.startswith("the network")]
    yield check("MTU", not narrow, [*narrow, mtu][0], "tazpod up --recreate")
    for what in old:
        if what not in narrow:
            yield Check("advice", "container", f"it is older than {what}", "tazpod up --recreate")
    if container and not read_records(config.project).get(container.id, {}).get("sees_locks", True):
        yield Check("advice", "locks", UNSEEN_LOCKS, "tazpod lock when you are done")
    if container and container.running:
        yield from told_checks(ask_pod(made, container, DOCTOR_WORD))
        return
    what = "it is not there, so nothing in it was checked"
    if container:
        what = "it does not run, so nothing in it was checked"
    yield Check("advice", "container", what, "tazpod up, then tazpod doctor")


def engine_facts(config: Config) -> tuple[str, str]:
    """What the engine says it is, and what time it has; Podman, which has no clock of its own, says none."""
    result = capture([config.program, "info", "--format", "{{json .}}"], limit=30)
    info: dict[str, Any] = {}
    if result.code == 0:
        info = json.loads(result.out.strip() or b"{}")
    refused = info.get("ServerErrors")  # in an answer of status 0, with or without an empty version
    if isinstance(refused, list) and refused:
        raise engine_error(result._replace(err="\n".join(map(str, refused))))
    if "ServerVersion" in info:
        what = f"Docker {info['ServerVersion']}"
        if "k8s-file" in str(info.get("Plugins")):  # a log driver that Podman alone has
            what = f"Podman {info['ServerVersion']} behind Docker's socket"
        return f"{what}, {info.get('OperatingSystem', '')}", str(info.get("SystemTime"))
    try:
        version = info["version"]["Version"]
        rights = {True: "without root", False: "as root"}[info["host"]["security"]["rootless"]]
    except (LookupError, TypeError):
        raise engine_error(result) from None
    return f"Podman {version}, {rights}", ""


def told_checks(told: Any) -> Iterator[Check]:
    """The checks that the pod made.  What it would have us type is marked as its words."""
    if not isinstance(told, list):
        raise makes_no_sense("it is no list of checks")
    for item in told[:CHECK_LIMIT]:
        texts = isinstance(item, list) and len(item) == 4 and all(isinstance(text, str) for text in item)
        if not texts or item[0] not in LEVELS:
            raise makes_no_sense(f"{brief(str(item))!r} is no check")
        level, name, what, fix = map(brief, item)
        if fix:
            fix = f"the container suggests: {fix}"
        yield Check(level, name, what, fix)


def check_files(config: Config) -> Iterator[Check]:
    """Owners and modes in the envelope, ~/.ssh, and space."""
    refuse_links(config)  # whoever mended what lies behind one would mend another's files
    owners_of(config.project)  # and in an envelope of somebody else's, one's own would go to that one
    wrong = list(check_owners(config))
    if wrong:
        yield from wrong
    else:
        yield Check("ok", "files", "owners and modes in .tazpod are right")
    ignored = config.project / ENVELOPE / ".gitignore"
    what = ".tazpod/.gitignore keeps logins and the vault out of git"
    if not ignored.exists():
        what = ".tazpod/.gitignore is not there, so git would take logins along"
    yield check("git", ignored.exists(), what, "tazpod init", "advice")
    ssh = home_folder() / ".ssh"
    loose = 0
    what = "is made by the next up"
    if ssh.is_dir():
        loose = ssh.stat().st_mode & 0o022
        what = "is private"
    if loose:
        what = "others may write to it"
    yield check("~/.ssh", not loose, what, f"chmod 700 {quoted(str(ssh))}")
    yield check_space("disk", config.project, 2 * bytes_of(config.vault_size))


def check_owners(config: Config) -> Iterator[Check]:
    """What in the envelope belongs to somebody else, or may be read by others."""
    envelope = config.project / ENVELOPE
    vault = host_vault(config).folder
    owner = os.lstat(envelope)
    for path in (envelope, *envelope.iterdir(), *all_below(vault)):
        try:
            info = path.lstat()
        except OSError:  # gone meanwhile, or nested too deep to be named
            continue
        name = brief(str(path.relative_to(config.project)))
        if info.st_uid != owner.st_uid:
            what = f"{name}: belongs to user {info.st_uid}, not to {owner.st_uid}"
            # Of the whole envelope: on the way to one file a folder could be exchanged for a link.
            fix = f"sudo chown -hR {owner.st_uid}:{owner.st_gid} {quoted(str(envelope))}"
            yield Check("failure", "files", what, fix)
        mode = stat.S_IMODE(info.st_mode)
        if mode & 0o022 and not path.is_symlink():
            fix = f"chmod go-w {quoted(str(path))}"
            yield Check("failure", "files", f"{name}: mode {mode:04o}, others may write to it", fix)
            continue
        private = path in (envelope, vault, config.run_folder) or vault in path.parents
        if private and mode & 0o077 and not path.is_symlink():
            level = "failure"
            if path == envelope:
                level = "advice"
            fix = f"chmod 600 {quoted(str(path))}"
            if path.is_dir():
                fix = f"chmod 700 {quoted(str(path))}"
            yield Check(level, "files", f"{name}: mode {mode:04o}, others may read it", fix)


def check_space(name: str, place: Path, least: int) -> Check:
    """Whether a disk has room, for a save with the versions it keeps, say."""
    room = os.statvfs(place)
    free = room.f_bavail * room.f_frsize
    fix = f"make room, {bytes_text(least)} at least"
    return check(name, free >= least, f"{bytes_text(free)} free at {place}", fix)


PROGRAMS = (*POD_PROGRAMS, "python3", "aws", "git", "ssh")
VERSION_WORD = {"openssl": "version", "ssh": "-V"}


def check_pod() -> Iterator[Check]:
    """Each program, RAM for the vault, what the AWS CLI can do, space: inside the container."""
    import shutil

    missing = [name for name in PROGRAMS if not shutil.which(name)]
    for name in PROGRAMS:
        if name not in missing:
            yield Check("ok", name, version_of(name))
            continue
        level = "advice"
        use = "part of TazPod works without"
        if name in POD_PROGRAMS:
            level = "failure"
            use = "the vault needs it"
        fix = "use an image built from Dockerfile.ai, or add it to yours, then tazpod up --recreate"
        yield Check(level, name, f"is not in the image: {use}", fix)
    with contextlib.suppress(MissingProgram):  # it was named above
        yield from check_ram()
    if "aws" not in missing:
        yield from check_aws()
    yield check_space("space", Path("/tmp"), 64 << 20)


def version_of(name: str) -> str:
    """What a program says of its version."""
    if name == "aws":
        result = ask_aws("--version")
    else:
        result = capture([name, VERSION_WORD.get(name, "--version")], limit=30)
    said = (result.out.decode(errors="replace") or result.err).strip().splitlines()
    if not said:
        return "says nothing of its version"
    return re.sub(r" \([^)]*\)$", "", said[0])


def check_ram() -> Iterator[Check]:
    """Whether a tmpfs can be mounted, and whether it may be written to swap."""
    if OPTIONS.dry_run:
        return  # to find out, one is mounted
    with empty_folder("tazpod-") as place:
        kept = change_mounts(tmpfs_argv(place, "64k", "trial"))
        done = kept
        if kept.code != 0:
            done = change_mounts(tmpfs_argv(place, "64k", "trial", ""))
        if done.code == 0:
            try_unmount(place)
            yield Check("ok", "tmpfs", "can be mounted")
        else:
            fix = "tazpod up --recreate: the container needs SYS_ADMIN"
            yield Check("failure", "tmpfs", f"cannot be mounted: {done.reason}", fix)
    swap = "off"
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        swap = "on"
    knows = "the kernel knows noswap"
    if kept.code != 0:
        knows = noswap_refused()
    fix = "turn swap off, or encrypt it: an open vault may be written there"
    yield check("swap", swap == "off" or kept.code == 0, f"is {swap}; {knows}", fix, "advice")


def check_aws() -> Iterator[Check]:
    """What the AWS CLI knows, asked together with an option that none knows, so that nothing is done."""
    put = aws_argv("s3api", "put-object", "--bucket", "x", "--key", "x")
    for argv, flag, use in (
        ([*put, "--if-match", "x", "--if-none-match", "x"], "--if-", "conditional writes"),
        ([*login_argvs("x")[1], DEVICE_CODE], DEVICE_CODE, "login by a code"),
    ):
        result = ask_aws(*argv[1:], "--tazpod-probe")
        if "--tazpod-probe" in result.err and not re.search(f"Unknown options:.*{flag}", result.err):
            yield Check("ok", "aws", f"knows {use}")
        else:
            fix = "use an image with version 2.23 of the AWS CLI, or a later one"
            yield Check("advice", "aws", f"does not know {use}", fix)


def cmd_pod_doctor(args: argparse.Namespace) -> int:
    """check the inside of the container (run by doctor)"""
    emit(json.dumps(list(check_pod())))
    return OK


def cmd_logs(args: argparse.Namespace) -> int:
    """print the daemon's log, which is in the container"""
    if in_pod():
        for path in (f"{LOG_PATH}.1", LOG_PATH):
            with contextlib.suppress(FileNotFoundError):
                emit(*read_shared(Path(path)).decode(errors="replace").splitlines())
        return OK
    config, container, _ = look_for_container(the_project(LOOKS))
    if container is None or not container.running:
        raise TazpodError("the container does not run, and the daemon's log is in it", "tazpod up")
    return pod_command(config, ["logs"])


def cmd_doctor(args: argparse.Namespace) -> int:
    """check engine, image, network, files and container; tell what to mend, and how"""
    project = project_folder()
    config = Config(project, legal_name(project.name))
    found: list[Check] = []
    try:
        config = config._replace(program=chosen_engine(config))
        request = read_request(project)
        config = request.config._replace(program=chosen_engine(request.config))
        found += [Check("advice", "config", text, "edit it") for text in request.warnings]
        found.append(Check("ok", "config", f"{CONFIG_PATH} is valid"))
        if not in_pod():
            found.append(check_approval(request))
    except (TazpodError, OSError) as error:
        found.append(failed_check("config", error, f"edit {project / CONFIG_PATH}"))
    groups: dict[str, Callable[[], Iterator[Check]]] = {"pod": check_pod}
    if not in_pod():
        groups = {"files": partial(check_files, config), "engine": partial(check_engine, config)}
    for name, group in groups.items():
        try:
            found.extend(group())
        except (TazpodError, OSError) as error:
            found.append(failed_check(name, error, "see --debug"))
    if args.json:
        emit_json([item._asdict() for item in found])
    else:
        emit(*doctor_lines(found))
    if any(item.level == "failure" for item in found):
        return UNWELL
    return OK


def check_approval(request: Request) -> Check:
    """Whether the settings are those that were approved."""
    names = ", ".join(change.name for change in request.changes)
    if not names:
        return Check("ok", "config", "all of it is approved")
    return Check("failure", "config", f"it asks for what was not approved: {names}", "tazpod trust")


def failed_check(name: str, error: Exception, fix: str) -> Check:
    """What stopped a group of checks; an error of ours brings its own hint."""
    return Check("failure", name, str(error), getattr(error, "hint", "") or fix)


def doctor_lines(found: Sequence[Check]) -> list[str]:
    """The checks for people: what failed comes with its fix, advice comes last."""
    lines = []
    for level in LEVELS:
        chosen = [item for item in found if item.level == level]
        if chosen and level == "advice":
            lines += ["", "Advice"]
        for item in chosen:
            lines.append(f"{level:<7}  {item.name:<10}  {item.what}")
            if item.fix:
                lines.append(f"{'':<21}fix: {item.fix}")
    return lines


# Each shell asks `__complete` with the words so far, the unfinished one last.
COMPLETIONS = {
    "bash": r"""_tazpod() {
    local IFS=$'\n'
    COMPREPLY=($(tazpod __complete "${COMP_WORDS[@]:0:COMP_CWORD+1}" 2>/dev/null))
}
complete -o default -F _tazpod tazpod
""",
    "zsh": r"""#compdef tazpod
_tazpod() {
    local -a found
    found=("${(@f)$(tazpod __complete "${(@)words[1,CURRENT]}" 2>/dev/null)}")
    if [[ -n $found[1] ]]; then compadd -- "${found[@]}"; else _files; fi
}
if [[ $funcstack[1] = _tazpod ]]; then _tazpod "$@"; else compdef _tazpod tazpod; fi
""",
    "fish": r"""function __tazpod; tazpod __complete (commandline -opc) (commandline -ct) 2>/dev/null; end
complete -c tazpod -f -a '(__tazpod)'
complete -c tazpod -n '__fish_seen_subcommand_from run' -F
""",
}


def cmd_completion(args: argparse.Namespace) -> int:
    """print what makes bash, zsh or fish complete tazpod's words"""
    emit(*COMPLETIONS[args.shell].splitlines())
    return OK


def cmd_guard(args: argparse.Namespace) -> int:
    """watch the sessions (started by up and unlock)"""
    if OPTIONS.dry_run:
        return OK  # what it would do is still to come
    config = the_project()
    guard(config, pod_vault(config))
    return OK


def cmd_set_up(args: argparse.Namespace) -> int:
    """fit a new container (run by up, as root)"""
    set_up_in_pod(json.loads(args.made), args.links)
    if not pod_made().get("sees_locks", True):
        emit(NO_LOCKS.decode())
    return OK


def cmd_holders(args: argparse.Namespace) -> int:
    """empty a mount and what holds it (run by lock, as root)"""
    left = empty_tree(Path(args.place), args.device)
    emit(json.dumps({"held": empty_held(args.device), "left": left}))
    return OK


# ── 11. command line ──────────────────────────────────────────────────────────────────────

Option = tuple[tuple[str, ...], dict[str, Any]]


def option(*names: str, **settings: Any) -> Option:
    """What argparse's add_argument takes, as a row of the table below."""
    return names, settings


class Word(NamedTuple):
    """One word of the command line: what runs it, where it may be typed, its options."""

    name: str
    run: Callable[[argparse.Namespace], int]
    options: tuple[Option, ...] = ()
    host_only: bool = False


HIDDEN = ""  # the help of an option that the help leaves out
PASSPHRASE_FD = option("--passphrase-fd", type=int, metavar="N", help="read the passphrase from descriptor N")
NEW = option("--new", action="store_true", help="start a new, empty vault where there is none")
DISCARD = option("--discard", action="store_true", help="give up what changed since the last save")
END_OTHERS = option("--force", action="store_true", help="also end sessions that are open in it")
RECREATE = option("--recreate", action="store_true", help="save and lock, remove it, and make it anew")
NO_VAULT = option("--no-vault", action="store_true", help="leave the vault locked, and ask for nothing")
REQUIRE_VAULT = option("--require-vault", action="store_true", help="fail where the vault stays locked")
FORCE = option("--force", action="store_true", help="seal also when nothing changed")
LEAVES = option("--leaving", default="", help=HIDDEN)
FOR_SESSION = option("--session", default="", help=HIDDEN)
IMAGE = option("--image", default="", help="the image to use")
NAME = option("--name", default="", help="the container's name")
WHAT = option("what", nargs="?", choices=["vault", "image"], default="vault", help="vault (default) or image")
KEEP_MINE = option("--keep-mine", action="store_true", help="put theirs into the history, push mine next")
TAKE_THEIRS = option("--force", action="store_true", help="take theirs, and put mine into the history")
OVERWRITE = option("--force", action="store_true", help="replace theirs, which goes to the history there")
REMOTE = option("--remote", action="store_true", help="of the storage, not of this machine")
SHOW = option("--show", action="store_true", help="only show it")
JSON = option("--json", action="store_true", help="print JSON, for programs")
PATHS = option("paths", nargs="+", metavar="PATH", help="in the home of the container: .config/gh, say")
ENV = option(
    "--env", action="append", default=[], metavar="NAME=FILE", help="a file of the vault as a variable"
)
ENV_FILE = option(
    "--env-file",
    action="append",
    default=[],
    metavar="FILE",
    help="a file of the vault with lines NAME=VALUE",
)
COMMAND_WORDS = option("command", nargs="...", help="the command and its words")
VERSION = option("version", help="as `tazpod history` names it")
PERHAPS_VERSION = option(
    "version", nargs="?", default="", help="an earlier one, as `tazpod history` names it"
)

WORDS: dict[str, tuple[Word, ...]] = {
    "Every day": (
        Word("enter", cmd_enter, (NO_VAULT,), host_only=True),
        Word(
            "run", cmd_run, (PASSPHRASE_FD, NEW, REQUIRE_VAULT, ENV, ENV_FILE, COMMAND_WORDS), host_only=True
        ),
        Word("unlock", cmd_unlock, (PASSPHRASE_FD, NEW, FOR_SESSION)),
        Word("save", cmd_save, (FORCE,)),
        Word("lock", cmd_lock, (DISCARD, LEAVES)),
        Word("status", cmd_status, (JSON,)),
    ),
    "Project and container": (
        Word("init", cmd_init, (IMAGE, NAME), host_only=True),
        Word("up", cmd_up, (RECREATE, END_OTHERS), host_only=True),
        Word("down", cmd_down, (DISCARD, END_OTHERS), host_only=True),
        Word("build", cmd_build, host_only=True),
        Word("adopt", cmd_adopt, (PATHS,)),
        Word("config", cmd_config),
        Word("trust", cmd_trust, (SHOW,), host_only=True),
        Word("list", cmd_list, (JSON,), host_only=True),
        Word("doctor", cmd_doctor, (JSON,)),
        Word("logs", cmd_logs),
        Word("completion", cmd_completion, (option("shell", choices=[*COMPLETIONS], help="the shell"),)),
    ),
    "Storage": (
        Word("login", cmd_login),
        Word("push", cmd_push, (option("what", nargs="?", choices=["vault"], default="vault"), OVERWRITE)),
        Word("pull", cmd_pull, (WHAT, KEEP_MINE, TAKE_THEIRS)),
        Word("setup-storage", cmd_setup_storage),
    ),
    "The vault's care": (
        Word("passwd", cmd_passwd, (PASSPHRASE_FD,)),
        Word("history", cmd_history, (REMOTE,)),
        Word("verify", cmd_verify, (PERHAPS_VERSION, REMOTE, PASSPHRASE_FD)),
        Word("restore", cmd_restore, (VERSION, REMOTE, PASSPHRASE_FD)),
    ),
    "In the container": (Word("env", cmd_env),),
}
INTERNAL = (
    Word(GUARD_WORD, cmd_guard),
    Word(STATUS_WORD, cmd_pod_status),
    Word(DOCTOR_WORD, cmd_pod_doctor),
    Word(SETUP_WORD, cmd_set_up, (option("made"), option("links", nargs="*"))),
    Word(HOLDERS_WORD, cmd_holders, (option("device", type=int), option("place"))),
)
ALIASES = {"ssh": ["enter"], "sync": ["pull"], "update": ["pull", "image"]}

HELP_HEAD = """\
usage: tazpod [WORD] [OPTIONS]

With no word, tazpod starts this project's container, opens its vault into RAM inside it, and
opens a shell; when the shell ends it saves what changed and locks the vault.
"""
HELP_TAIL = """\
Options
  --pod NAME        of the project of that pod, not of this folder
  --yes             answer yes to every question; it does not approve a config.yaml
  --debug           print every command that is run; show tracebacks
  --dry-run         show what would be run and written, do none of it, ask nothing
  --help, -h        also after a word: tazpod unlock --help
  --version, -v

Files of a project
  .tazpod/config.yaml            image, names, sizes; every key is optional
  .tazpod/vault/vault.tar.aes    the sealed vault; without this tool: gpg -d FILE | tar x
  ~/secrets in the container     the open vault, in RAM only

Exit status
  0 done   1 failed   2 wrong usage or config   127 a program is missing   130 interrupted
  pull gives 3 when the storage holds no vault, status and doctor give 4 when not all is well,
  enter and run give the shell's or the command's own.
"""


def all_words() -> dict[str, Word]:
    """Every word by its name."""
    return {word.name: word for group in WORDS.values() for word in group}


def make_parser(word: Word) -> argparse.ArgumentParser:
    """The parser of one word, made from its row of the table."""
    import argparse

    class Parser(argparse.ArgumentParser):
        """argparse whose errors are ours: one line, a hint, status 2."""

        def error(self, message: str) -> NoReturn:
            raise UsageError(message, f"{self.prog} --help")

        def print_help(self, file: object = None) -> None:
            emit(*self.format_help().splitlines())  # which sees that a reader has gone

    summary = (word.run.__doc__ or "").strip()
    description = summary[:1].upper() + summary[1:] + "."
    for short, words in ALIASES.items():
        if words[0] == word.name:
            description += f" `tazpod {short}` is short for `tazpod {' '.join(words)}`."
    parser = Parser(
        prog=f"tazpod {word.name}",
        description=description,
        allow_abbrev=False,
        epilog="--pod, --yes, --debug and --dry-run work with every word.",
    )
    for names, settings in word.options:
        shown = settings.get("help")
        if shown == HIDDEN:
            shown = argparse.SUPPRESS
        parser.add_argument(*names, **{**settings, "help": shown})
    return parser


def _field(names: Sequence[str]) -> str:
    """Where argparse keeps the value of an option."""
    return names[0].lstrip("-").replace("-", "_")


def parse_words(word: Word, words: Sequence[str]) -> Any:
    """What was typed after a word.  A word alone needs no argparse: everything has its default."""
    if words or not all(names[0].startswith("--") for names, _ in word.options):
        return make_parser(word).parse_args(words)
    flags = {_field(names): settings.get("default") for names, settings in word.options}
    flags.update({_field(names): False for names, o in word.options if o.get("action") == "store_true"})
    return SimpleNamespace(**flags)


def overview() -> str:
    """The text of `tazpod --help`, made from the table of words."""
    lines = [HELP_HEAD]
    for title, group in WORDS.items():
        lines.append(title)
        for word in group:
            name = {"enter": "enter, ssh", "pull": "pull, sync, update"}.get(word.name, word.name)
            lines.append(f"  {name:<18} {(word.run.__doc__ or '').strip()}")
        if title.startswith("Project"):
            lines.append("  help WORD          explain a word")
        lines.append("")
    return "\n".join([*lines, HELP_TAIL.rstrip()])


GLOBAL_FLAGS = ("--yes", "--debug", "--dry-run")


def complete(
    words: Sequence[str], pods: Callable[[], Iterable[str]], past: Callable[[str], Iterable[str]]
) -> list[str]:
    """What the last of these words may become.

    `pods` gives the names of all pods, `past` the earlier versions of one, or, of '', of this folder's.
    """
    *before, last = [word for word in words if word != "="] or [""]  # bash cuts --pod=NAME there
    typed: list[str] = []
    pod = ""
    names_pod = False
    for item in before:
        if names_pod:
            pod = item
            names_pod = False
        elif item == "--pod":
            names_pod = True
        elif item not in GLOBAL_FLAGS:
            typed.append(item)
    found: Iterable[str] = ()
    if names_pod:
        found = pods()
    elif last.startswith("--pod="):
        found = (f"--pod={name}" for name in pods())
    elif not typed:
        found = (*all_words(), *ALIASES, "help", "--help", "--version", "--pod", *GLOBAL_FLAGS)
    elif typed == ["help"]:
        found = (*all_words(), *ALIASES)
    else:
        name, *rest = ALIASES.get(typed[0], typed[:1]) + typed[1:]
        if name in all_words():
            found = _complete_options(all_words()[name], rest, last, partial(past, pod))
    return sorted(word for word in found if word.startswith(last))


def _complete_options(
    word: Word, rest: Sequence[str], last: str, past: Callable[[], Iterable[str]]
) -> Iterable[str]:
    """What may come after a word and `rest`: its options, or what it is about."""
    visible = {names[0]: settings for names, settings in word.options if settings.get("help") != HIDDEN}
    options = [name for name in visible if name.startswith("-")]
    given = [item for item in rest if not item.startswith("-")]
    before = rest[-1:]
    if before and before[0] in options and visible[before[0]].get("action") != "store_true":
        return ()  # the value of that option
    if word.name == "run" and given:
        return ()  # the words of a command
    if last.startswith("-"):
        return (*options, "--help", "--pod", *GLOBAL_FLAGS)
    if word.name == "run" or given:
        return ()
    for name, settings in visible.items():
        if name not in options and "choices" in settings:
            return list(settings["choices"])
        if name == "version" and "--remote" in rest:
            return ()  # the storage is not asked while somebody types
        if name == "version":
            return past()
    return options


def cmd_complete(words: Sequence[str]) -> int:
    """Answer a shell that completes: one word a line, silent whatever happens."""

    def past(pod: str) -> Iterator[str]:
        if pod:
            OPTIONS.folder = project_of(pod)
        vault = Vault(project_folder() / ENVELOPE / "vault", Path("/nowhere"))
        names = (path.name[: -len(".tar.aes")] for path in versions(vault))
        return filter(re.compile(r"[a-zA-Z0-9.-]+").fullmatch, names)  # the shell takes them as typed

    with contextlib.suppress(TazpodError, OSError):
        found = complete(words, find_pods, past)
        if found:
            emit(*found)
    return OK


def forward_words(word: Word, args: argparse.Namespace) -> list[str]:
    """The words that say the same in the pod; the passphrase goes another way."""
    words = [word.name]
    for names, settings in word.options:
        value = getattr(args, _field(names))
        if names[0] == "--passphrase-fd" or value in (False, "", None):
            continue
        if names[0].startswith("-"):
            words.append(names[0])
        if settings.get("action") != "store_true":
            words.append(str(value))
    return words


def begins_command(words: Sequence[str], item: str) -> bool:
    """Whether `item`, after these words, is the first one of the command that `run` runs."""
    return words[:1] == ["run"] and not item.startswith("-") and words[-1] != "--passphrase-fd"


def split_line(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """The words of a command line, and the pod that it names; OPTIONS is told the other global options."""
    rest = list(argv)
    words: list[str] = []
    pod: str | None = None
    while rest:
        item = rest.pop(0)
        if item == "--" or begins_command(words, item):
            words += [item, *rest]  # a command, whose words are not for us
            break
        if item in GLOBAL_FLAGS:
            setattr(OPTIONS, item[2:].replace("-", "_"), True)
        elif item == "--pod":
            pod = "".join(rest[:1])
            del rest[:1]
        elif item.startswith("--pod="):
            pod = item[len("--pod=") :]
        else:
            words.append(item)
    return words, pod


def whole_word(words: Sequence[str]) -> list[str]:
    """Words in which a short name stands for what it is short for, and `enter` for none."""
    if not words or words[0] in NO_VAULT[0]:
        return ["enter", *words]
    return [*ALIASES.get(words[0], words[:1]), *words[1:]]


HELP_WORDS = ("help", "--help", "-h")


def show_help(words: Sequence[str]) -> int:
    """Print the help of the word that is named beside `help`, or of all."""
    topics = [word for word in words if word not in HELP_WORDS]
    text = overview()
    if topics[:1] == ["update"]:  # what it is short for has more sides
        text = "usage: tazpod update\n\nPull the image. `tazpod update` is short for `tazpod pull image`."
    elif topics:
        text = make_parser(find_word(whole_word(topics)[0])).format_help()
    emit(*text.splitlines())
    return OK


def dispatch(argv: Sequence[str]) -> int:
    """Run what the command line says."""
    OPTIONS.containers.clear()
    OPTIONS.mounts.clear()
    if argv[:1] == [COMPLETE_WORD]:
        OPTIONS.hurry = True
        return cmd_complete(argv[2:])
    words, pod = split_line(argv)
    if words[:1] == ["update"] and any(word in HELP_WORDS for word in words):
        return show_help(words)
    words = whole_word(words)
    if words[0] in ("--version", "-v"):
        emit(f"tazpod {__version__}")
        return OK
    if words[0] in HELP_WORDS:
        return show_help(words)
    word = find_word(words[0])
    if word in INTERNAL and not in_pod():  # one of them, as root, changes the accounts of the machine
        raise UsageError(
            f"{word.name} is for the inside of a container", "tazpod --help lists what is for you"
        )
    OPTIONS.hurry = word.name in ("enter", "run", "lock", "save") or in_pod()
    args = parse_words(word, words[1:])
    args.word = word.name
    args.forward = forward_words(word, args)
    if word.host_only and in_pod():
        raise UsageError(f"{word.name} is for the host; this is inside the container")
    if pod is not None:
        if in_pod():
            raise UsageError("--pod is for the host; this is inside the container")
        OPTIONS.folder = project_of(pod)
        OPTIONS.pod = pod
    return word.run(args)


def find_word(name: str) -> Word:
    """A word of the table, or UsageError with the nearest one."""
    words = {**all_words(), **{word.name: word for word in INTERNAL}}
    if name in words:
        return words[name]
    if name == "vpn":
        raise UsageError(
            "vpn was a placeholder in Go TazPod, and there is none here", "hooks.post_up may start one"
        )
    import difflib

    message = f"there is no word {name!r}"
    for near in difflib.get_close_matches(name, [*all_words(), *ALIASES, "help"], n=1):
        message += f"; did you mean {near}?"
    raise UsageError(message, "tazpod --help lists them")


def tell_trace(error: Exception) -> None:
    """With --debug: where in this file an error arose."""
    if OPTIONS.debug:
        import traceback

        relay("".join(traceback.format_exception(type(error), error, error.__traceback__)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    import resource

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)  # so that `finally` is the only clean-up path

    os.umask(0o077)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text at all
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the passphrase
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    try:
        if in_pod():
            signal.signal(signal.SIGINT, signal.default_int_handler)  # see the launcher in `pod_archive`
        if argv is None:
            argv = sys.argv[1:]
        return dispatch(argv)
    except TazpodError as error:
        complain(error)
        tell_trace(error)
        return error.exit_code
    except KeyboardInterrupt:
        _talk("")
        complain(TazpodError("interrupted"))
        return INTERRUPTED
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # whoever read the output has gone
        return FAILED
    except OSError as error:
        what = str(error.strerror or error)
        if error.filename is not None:
            what = f"{error.filename}: {what}"
        complain(TazpodError(what))
        tell_trace(error)
    except Exception as error:
        complain(TazpodError(f"a fault in tazpod itself: {type(error).__name__}", "--debug shows it"))
        tell_trace(error)
    return FAILED


def program() -> NoReturn:
    """`main` for a process of its own, which ends at once: tidying an interpreter up takes 5 ms."""
    os._exit(main())


if __name__ == "__main__":
    program()
