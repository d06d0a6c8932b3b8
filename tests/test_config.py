"""config.yaml, the project's folder, and what `init` writes."""

from __future__ import annotations

import os
import random
import re
import stat
import subprocess
import unicodedata
from pathlib import Path

import pytest
from conftest import ROOT, load_config, replace, run_cli

import tazpod
from tazpod import Config, parse_config

PROJECT = Path("/srv/blue")
DEFAULT = Config(PROJECT, "blue-lab")


def parsed(text: str) -> Config:
    """The config that a text gives; a warning fails the test."""
    config, warnings = parse_config(text, PROJECT)
    assert warnings == []
    return config


def test_the_defaults_are_those_of_the_contract():
    assert parsed("")._asdict() == {
        "project": PROJECT,
        "container_name": "blue-lab",
        "image": "tazzo/tazpod-ai:latest",
        "user": "tazpod",
        "dockerfile": ".tazpod/Dockerfile.ai",
        "context": ".",
        "ghost_mode": True,
        "debug": False,
        "aws_profile": "tazlab-bootstrap",
        "aws_bucket": "tazlab-storage",
        "aws_prefix": "tazpod/vault",
        "aws_region": "eu-central-1",
        "aws_start_url": "",
        "aws_account_id": "",
        "aws_role_name": "",
        "vault_size": "64m",
        "vault_keep": 5,
        "vault_retention": 50,
        "vault_autolock": 0,
        "aws_endpoint": "",
        "aws_named": False,
        "aws_variables": (),
        "proxies": (),
        "sync_interval": 300,
        "push_on_exit": True,
        "vault_binds": (".aws",),
        "vault_agents": False,
        "vault_history": False,
        "vault_env": (),
        "identity": tazpod.AGENTS,
        "ssh_agent": False,
        "engine": "auto",
        "program": "docker",
        "mtu": "auto",
        "dns": ("1.1.1.1", "1.0.0.1"),
        "docker_args": (),
        "ports": (),
        "mounts": (),
        "git_mounts": (),
        "env": (),
        "shell": "/bin/bash",
        "post_up": "",
        "pre_lock": "",
    }


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# only a comment\n", "---\n", "null\n", "{}\n", "\ufeff# BOM\n"]
)
def test_an_empty_file_means_the_defaults(text):
    assert parsed(text) == DEFAULT


KEYS = [
    ("image: example.com/a/b:1.2", "image", "example.com/a/b:1.2"),
    ("container_name: my.box_1", "container_name", "my.box_1"),
    ("user: dev", "user", "dev"),
    ("build: {dockerfile: docker/Dev file}", "dockerfile", "docker/Dev file"),
    ("build: {context: ..}", "context", ".."),
    ("features: {ghost_mode: false}", "ghost_mode", False),
    ("features: {ghost_mode: off}", "ghost_mode", False),
    ("features: {ghost_mode: Yes}", "ghost_mode", True),
    ("features: {debug: true}", "debug", True),
    ("aws_sso: {profile: ops}", "aws_profile", "ops"),
    ("aws_sso: {bucket: b}", "aws_bucket", "b"),
    ("aws_sso: {prefix: tazpod/lab-2}", "aws_prefix", "tazpod/lab-2"),
    ("aws_sso: {region: us-east-1}", "aws_region", "us-east-1"),
    ("aws_sso: {start_url: 'https://x.awsapps.com/start'}", "aws_start_url", "https://x.awsapps.com/start"),
    ("aws_sso: {account_id: '012345678901'}", "aws_account_id", "012345678901"),
    ("aws_sso: {account_id: 123456789012}", "aws_account_id", "123456789012"),
    ("aws_sso: {account_id: 012345670123}", "aws_account_id", "012345670123"),
    ("aws_sso: {role_name: Admin}", "aws_role_name", "Admin"),
    ("aws_sso: {role_name: ''}", "aws_role_name", ""),
    ("aws_sso: {endpoint_url: 'http://localhost:9000'}", "aws_endpoint", "http://localhost:9000"),
    ("sync: {interval: 60}", "sync_interval", 60),
    ("sync: {push_on_exit: false}", "push_on_exit", False),
    ("vault: {size: 512M}", "vault_size", "512M"),
    ("vault: {keep: 0}", "vault_keep", 0),
    ("vault: {retention: 7}", "vault_retention", 7),
    ("vault: {autolock: 30}", "vault_autolock", 30),
    ("vault: {agents: true}", "vault_agents", True),
    ("vault: {history: true}", "vault_history", True),
    ("vault: {env: {A: a/b, B: c}}", "vault_env", (("A", "a/b"), ("B", "c"))),
    ("vault: {binds: [.aws, .config/gh]}", "vault_binds", (".aws", ".config/gh")),
    ("vault: {binds: []}", "vault_binds", ()),
    ("identity: [.claude, my tool]", "identity", (".claude", "my tool")),
    ("features: {ssh_agent: true}", "ssh_agent", True),
    ("engine: podman", "engine", "podman"),
    ("network: {mtu: off}", "mtu", "off"),
    ("network: {mtu: auto}", "mtu", "auto"),
    ("network: {mtu: 1280}", "mtu", "1280"),
    ("network: {dns: [10.0.0.53, 'fd00::53']}", "dns", ("10.0.0.53", "fd00::53")),
    ("network: {dns: []}", "dns", ()),
    ("docker: {args: [--gpus, all, --shm-size=1g]}", "docker_args", ("--gpus", "all", "--shm-size=1g")),
    (
        "ports: [8080:80, 22, '127.0.0.1:53:53/udp', 9000-9010:9000-9010]",
        "ports",
        ("8080:80", "22", "127.0.0.1:53:53/udp", "9000-9010:9000-9010"),
    ),
    ("mounts: [./data:/data, ~/x y:/z:ro, cache:/c]", "mounts", ("./data:/data", "~/x y:/z:ro", "cache:/c")),
    (
        "env: {A: b, N: 017, T: true, EMPTY: '', HOST_A: }",
        "env",
        (("A", "b"), ("N", "017"), ("T", "true"), ("EMPTY", ""), ("HOST_A", None)),
    ),
    ("shell: /usr/bin/zsh", "shell", "/usr/bin/zsh"),
    ("hooks: {post_up: 'make deps'}", "post_up", "make deps"),
    ("hooks:\n  pre_lock: |\n    a\n    b\n", "pre_lock", "a\nb\n"),
]


@pytest.mark.parametrize(
    "names, binds",
    [
        ((), (".aws",)),
        ((".aws",), (".aws",)),
        ((".config/gh", ".kube"), (".aws", ".config/gh", ".kube")),
        ((".config/gh", ".config", ".config//gcloud"), (".aws", ".config")),
        ((".aws/sso",), (".aws",)),
    ],
)
def test_tokens_are_always_in_ram_and_no_bind_lies_in_another(names, binds):
    assert replace(DEFAULT, vault_binds=names).binds == binds
    binds = tazpod.outermost((*binds, *tazpod.AGENTS))
    assert replace(DEFAULT, vault_binds=names, vault_agents=True).binds == binds


@pytest.mark.parametrize(
    "identity, binds, links",
    [
        ((".a", ".b", ".a"), (), (".a", ".b")),
        ((".a", ".b"), (".a",), (".b",)),
        ((".aws", ".a"), (), (".a",)),
        ((".a/b", ".a", ".ab"), (), (".a", ".ab")),
        ((".a/b", ".a/c", ".ab"), (".a",), (".ab",)),
        ((".a", ".b"), (".a/b",), (".b",)),
        ((), (".a",), ()),
    ],
)
def test_what_the_vault_holds_is_not_linked_into_the_project(identity, binds, links):
    assert replace(DEFAULT, identity=identity, vault_binds=binds).links == links


@pytest.mark.parametrize("text, field, value", KEYS, ids=[text for text, *_ in KEYS])
def test_each_key_sets_its_field_and_no_other(text, field, value):
    assert parsed(text) == replace(DEFAULT, aws_named=field.startswith("aws_"), **{field: value})


def test_each_key_is_in_the_table_above():
    assert {field for _, field, _ in KEYS} == {key.field for key in tazpod.KEYS.values()}


@pytest.mark.parametrize("name", tazpod.KEYS)
def test_a_key_without_a_value_keeps_its_default(name):
    section, _, leaf = name.rpartition(".")
    assert parsed(f"{section}:\n  {leaf}:\n" if section else f"{leaf}:\n") == DEFAULT


def test_a_section_without_keys_keeps_the_defaults():
    assert parsed("build:\nfeatures: {}\naws_sso: ~\nvault:\n") == DEFAULT


GO_FILES = {
    "go-minimal.yaml": replace(DEFAULT, container_name="tazpod-lab", aws_named=True),
    "go-old.yaml": replace(
        DEFAULT,
        image="docker.io/tazzo/tazpod-ai:v9.9.9",
        container_name="infra_lab.2",
        user="operator",
        dockerfile=".tazpod/Dockerfile",
        context="..",
        ghost_mode=False,
        debug=True,
    ),
    "go-sso.yaml": replace(
        replace(DEFAULT, aws_named=True),
        image="registry.example.com:5000/lab/tazpod-ai@sha256:" + "0123456789abcdef" * 4,
        aws_start_url="https://d-9067642ac7.awsapps.com/start",
        aws_account_id="012345670123",
        aws_role_name="AdministratorAccess",
        aws_profile="blue",
        aws_bucket="blue-storage",
        aws_region="eu-west-1",
        vault_retention=120,
    ),
}


@pytest.mark.parametrize("name", GO_FILES)
def test_files_of_go_tazpod_are_read_without_a_word(name):
    assert parsed((ROOT / "tests/data" / name).read_text()) == GO_FILES[name]


@pytest.mark.parametrize("value", ["x", "3", "true", "[1, 2]", "{a: {b: 1}}", "null", "0.3"])
@pytest.mark.parametrize("key", tazpod.LEGACY_KEYS)
def test_a_legacy_key_may_hold_anything(key, value):
    assert parsed(f"{key}: {value}\nuser: dev\n") == replace(DEFAULT, user="dev")


@pytest.mark.parametrize(
    "text, ghost",
    [
        ("ghost_mode: false", False),
        ("ghost_mode: no", False),
        ("ghost_mode: true", True),
        ("ghost_mode: false\nfeatures: {ghost_mode: true}", True),
        ("features: {ghost_mode: true}\nghost_mode: false", True),
        ("features: {ghost_mode: false}\nghost_mode: true", False),
    ],
)
def test_ghost_mode_at_top_level_counts_where_features_does_not_say(text, ghost):
    assert parsed(text).ghost_mode is ghost


WRONG = [
    # types
    ("image: 1.5", "1: image: must be text"),
    ("image: [a]", "1: image: must be text"),
    ("image: {a: b}", "1: image: must be text"),
    ("\n\ncontainer_name: 123", "3: container_name: must be text"),
    ("user: yes", "1: user: must be text"),
    ("build: text", "1: build: must be a mapping of keys"),
    ("features: [ghost_mode]", "1: features: must be a mapping of keys"),
    ("vault: 64m", "1: vault: must be a mapping of keys"),
    ("features:\n  ghost_mode: 1", "2: features.ghost_mode: must be true or false"),
    ("features:\n  debug: 'true'", "2: features.debug: must be true or false"),
    ("features:\n  debug: maybe", "2: features.debug: must be true or false"),
    ("vault:\n\n  keep: many", "3: vault.keep: must be a whole number"),
    ("vault: {keep: 2.5}", "1: vault.keep: must be a whole number"),
    ("vault: {keep: -1}", "1: vault.keep: must be a whole number from 0 to 1000"),
    ("vault: {keep: 1001}", "1: vault.keep: must be a whole number from 0 to 1000"),
    ("vault: {keep: 0x10}", "1: vault.keep: must be a whole number from 0 to 1000"),
    ("vault: {size: 64}", "1: vault.size: must be text"),
    ("aws_sso: {bucket: 12}", "1: aws_sso.bucket: must be text"),
    ("aws_sso: {account_id: 1.5}", "1: aws_sso.account_id: must be text"),
    ("identity: .claude", "1: identity: must be a list"),
    ("identity:\n  a: b", "2: identity: must be a list"),
    ("identity: [[a]]", "1: identity: must be text"),
    ("env: [A=b]", "1: env: must be a mapping"),
    ("env: {A: [b]}", "1: env: must be text"),
    ("env: {A-B: c}", "1: env: 'A-B' is not a legal value"),
    ("env: {A: b, A: }", "1: env: A is there twice"),
    ("env: {'A=B': c}", "1: env: 'A=B' is not a legal value"),
    ("vault: {binds: [/etc]}", "1: vault.binds: '/etc' is not a legal value"),
    ("vault: {binds: [../x]}", "1: vault.binds: '../x' is not a legal value"),
    ("vault: {binds: [a/../../x]}", "1: vault.binds: 'a/../../x' is not a legal value"),
    ("vault: {binds: [.ssh]}", "1: vault.binds: '.ssh' is not a legal value"),
    ("vault: {binds: [secrets/x]}", "1: vault.binds: 'secrets/x' is not a legal value"),
    ("vault: {binds: [.vault_pass]}", "1: vault.binds: '.vault_pass' is not a legal value"),
    ("vault: {env: {A: /etc/x}}", "1: vault.env: A must be a file of the vault, by its path there"),
    ("vault: {env: {A: }}", "1: vault.env: A must be a file of the vault, by its path there"),
    ("vault: {env: {A: .vault_pass}}", "1: vault.env: A must be a file of the vault, by its path there"),
    ("vault: {binds: [-x]}", "1: vault.binds: '-x' is not a legal value"),
    ("identity: [.aws/]", "1: identity: '.aws/' is not a legal value"),
    ("network: {dns: ['-x']}", "1: network.dns: '-x' is not a legal value"),
    ("network: {dns: [host.example]}", "1: network.dns: 'host.example' is not a legal value"),
    ("network: {dns: 10.0.0.1}", "1: network.dns: must be a list"),
    ("network: {mtu: 12}", "1: network.mtu: '12' is not a legal value"),
    ("network: {mtu: yes}", "1: network.mtu: 'yes' is not a legal value"),
    ("ports: [web]", "1: ports: 'web' is not a legal value"),
    ("ports: [--publish-all]", "1: ports: '--publish-all' is not a legal value"),
    ("mounts: [/data]", "1: mounts: '/data' is not a legal value"),
    ("mounts: ['a:b']", "1: mounts: 'a:b' is not a legal value"),
    ("mounts: ['-a:/b']", "1: mounts: '-a:/b' is not a legal value"),
    ("shell: zsh", "1: shell: 'zsh' is not a legal value"),
    # not a config at all
    ("just a text", "1: must be a mapping of keys"),
    ("- a\n- b", "1: must be a mapping of keys"),
    ("image: a\n\tuser: b", "2: not valid YAML: "),
    ("image: [a\n\n", "3: not valid YAML: "),
    ("image: 'a\n\n", "3: not valid YAML: "),
    ("a: b: c", "1: not valid YAML: "),
    ("user: *nobody", "1: not valid YAML: "),
    ("user: a\n---\nuser: b", "2: not valid YAML: "),
]


@pytest.mark.parametrize("text, complaint", WRONG, ids=[repr(text) for text, _ in WRONG])
def test_what_is_wrong_is_told_with_file_line_and_key(text, complaint):
    with pytest.raises(tazpod.UsageError) as caught:
        parse_config(text, PROJECT)
    assert str(caught.value).startswith(f"{PROJECT}/.tazpod/config.yaml:{complaint}")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


ILLEGAL = {
    "container_name": [
        *(
            "-lab",
            "--privileged",
            "_lab",
            ".lab",
            "a",
            "my lab",
            "a/b",
            "a:b",
            "é-lab",
            "a\nb",
            " a",
            "a ",
            "",
        ),
        *("lab;id", "lab$(id)", "a\0b", "ab\n"),
    ],
    "image": [
        *(
            "-it",
            "--privileged",
            "Upper/Case/path/Image",
            "Image",
            "a/B",
            "a b",
            "a:",
            ":tag",
            "a:-tag",
            "a//b",
        ),
        *("a/", "/a", "a..b", "a:b:c", "a@sha256:12", "a@md5:" + "0" * 64, "http://a/b", "", "a\n", "_a"),
        *("a:" + "t" * 129, "a/-b", "a___b"),
    ],
    "user": ["-u", "root:root", "Upper", "1a", "a b", "", "x" * 33, "a/b", "é"],
    "build.dockerfile": ["-", "--push", "", "a\nb"],
    "build.context": ["-", "-o", ""],
    "aws_sso.profile": ["--profile", "-x", "a\nb", "file:///x", "a b", "a]b"],
    "aws_sso.bucket": ["-b", "", "file:///x", "fileb://x", "http://x", "a/b", "a b", "arn:aws:s3:::x", "é"],
    "aws_sso.prefix": [
        "",
        "-p",
        "/a",
        "a/",
        "a//b",
        "a/../b",
        "..",
        "file:///x",
        "a b",
        "a\n",
        "é",
        "a" * 201,
    ],
    "aws_sso.region": ["-r", "", "file:///x", "a,b", "a=b", "eu central"],
    "aws_sso.endpoint_url": [
        "-x",
        "file:///x",
        "fileb://x",
        "ftp://x",
        "http://",
        "http://a b",
        "x",
        "http://a@b",
    ],
    "aws_sso.start_url": ["--x", "file:///x", "x", "https://a\n[profile x]"],
    "aws_sso.account_id": ["-1x", "12345678901", "1234567890123", "12345678901a"],
    "aws_sso.role_name": ["-x", "a b", "file:///x", "x" * 65],
    "vault.size": ["", "64", "0m", "-64m", "64mb", "64 m", "6.4m", "64m,uid=0", "1t", "٦m", "9999999999m"],
}
LEGAL = {
    "container_name": ["ab", "A1", "0.", "a-b_c.d", "x" * 200],
    "image": [
        *(
            "a",
            "a/b",
            "a/b/c",
            "a:Tag",
            "a:_x.y-z",
            "localhost:5000/a",
            "EXAMPLE.com/a",
            "a--b",
            "a__b",
            "a.b/c_d",
        ),
        *("a@sha256:" + "f" * 64, "x.y:1/a/b:t@sha256:" + "0" * 64, "a:" + "t" * 128),
    ],
    "user": ["a", "_x", "a-b", "x" * 32],
    "build.dockerfile": ["D", "a b/ö", "/abs/Dockerfile", "."],
    "vault.size": ["1k", "64m", "64M", "2g", "999999999k"],
}


def yaml_for(key: str, value: str) -> str:
    quoted = "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in value)
    section, _, leaf = key.rpartition(".")
    return f'{section}:\n  {leaf}: "{quoted}"\n' if section else f'{leaf}: "{quoted}"\n'


@pytest.mark.parametrize("key, value", [(key, value) for key, values in ILLEGAL.items() for value in values])
def test_a_value_that_argv_must_not_carry_is_refused(key, value):
    with pytest.raises(tazpod.UsageError) as caught:
        parse_config(yaml_for(key, value), PROJECT)
    line = 2 if "." in key else 1
    expected = f"{PROJECT}/.tazpod/config.yaml:{line}: {key}: {value!r} is not a legal value"
    assert str(caught.value) == expected


@pytest.mark.parametrize("key, value", [(key, value) for key, values in LEGAL.items() for value in values])
def test_a_value_that_docker_takes_is_taken(key, value):
    assert getattr(parsed(yaml_for(key, value)), tazpod.KEYS[key].field) == value


@pytest.mark.parametrize(
    "text, warning",
    [
        ("imge: a", "1: unknown key imge; did you mean image?"),
        ("container-name: a", "1: unknown key container-name; did you mean container_name?"),
        ("build:\n  docker_file: a", "2: unknown key build.docker_file; did you mean build.dockerfile?"),
        (
            "features:\n  gost_mode: true",
            "2: unknown key features.gost_mode; did you mean features.ghost_mode?",
        ),
        ("vault:\n  retentions: 3", "2: unknown key vault.retentions; did you mean vault.retention?"),
        ("dockerfile: a", "1: unknown key dockerfile; did you mean build.dockerfile?"),
        ("zzz: {a: {b: c}}", "1: unknown key zzz"),
        ("3: x", "1: unknown key 3"),
        ("zzz: &a {b: *a}", "1: unknown key zzz"),
        ("vault: &a {b: *a}", "1: unknown key vault.b; did you mean vault.binds?"),
    ],
)
def test_an_unknown_key_is_a_warning_with_the_nearest_one(text, warning):
    config, warnings = parse_config(f"{text}\n", PROJECT)
    assert config == DEFAULT
    assert warnings == [f"{PROJECT}/.tazpod/config.yaml:{warning}"]


def test_of_many_unknown_keys_a_few_are_told():
    _, warnings = parse_config("\n".join(f"k{number}: x\nuser: a" for number in range(500)), PROJECT)
    assert len(warnings) == tazpod.UNKNOWN_TOLD + 2
    assert warnings[-1] == f"{PROJECT}/.tazpod/config.yaml: {500 - tazpod.UNKNOWN_TOLD} more unknown keys"


def test_a_config_that_nobody_can_have_written_is_refused_at_once(project):
    (project / tazpod.CONFIG_PATH).write_text("#" * (tazpod.CONFIG_LIMIT + 1))
    with pytest.raises(tazpod.UsageError, match="is larger than 64 KiB"):
        load_config(project)


@pytest.mark.parametrize("name", ["hooks.pre_lock", "hooks.post_up"])
def test_a_default_that_is_empty_can_be_written_out(name):
    assert parsed(yaml_for(name, "")) == DEFAULT


def test_the_warning_is_shown_and_the_rest_counts(project, capfd):
    (project / tazpod.CONFIG_PATH).write_text("usr: x\nuser: dev\n")
    assert load_config(project).user == "dev"
    expected = f"tazpod: warning: {project}/.tazpod/config.yaml:1: unknown key usr; did you mean user?\n"
    assert capfd.readouterr().err == expected


def test_without_a_file_the_defaults_hold(project):
    (project / tazpod.CONFIG_PATH).unlink()
    assert load_config(project) == Config(project, "project-lab", program="docker")


def test_a_file_that_is_not_utf_8_is_a_config_error(project):
    (project / tazpod.CONFIG_PATH).write_bytes(b"user: caf\xe9\n")
    with pytest.raises(tazpod.UsageError, match=r"config\.yaml: is not UTF-8 text$"):
        load_config(project)


def test_debug_in_the_file_is_debug_on_the_command_line(project):
    (project / tazpod.CONFIG_PATH).write_text("features: {debug: true}\n")
    load_config(project)
    assert tazpod.OPTIONS.debug


def test_the_paths_follow_the_user():
    config = parsed("user: dev")
    assert (config.home, config.secrets) == ("/home/dev", "/home/dev/secrets")


# -- names


@pytest.mark.parametrize(
    "folder, name",
    [
        ("tazpod", "tazpod-lab"),
        ("My Project! ☃", "My-Project-lab"),
        ("a", "a-lab"),
        ("--privileged", "privileged-lab"),
        ("...", "project-lab"),
        ("", "project-lab"),
        ("☃", "project-lab"),
        ("été 2024", "t-2024-lab"),
        ("web.site_2", "web.site_2-lab"),
        ("x" * 80, "x" * 59 + "-lab"),
        ("a\nb", "a-b-lab"),
    ],
)
def test_the_name_made_from_a_folder(folder, name):
    assert tazpod.legal_name(folder) == name


def any_folder_name(chance: random.Random) -> str:
    alphabets = ["abcXYZ019", "-_.", " \t\n'\"$;&|\\", "éüßñ中☃🙂\u0301\u202e", "\udcff\udc80"]
    letters = "".join(chance.sample(alphabets, chance.randint(1, len(alphabets))))
    return "".join(chance.choice(letters) for _ in range(chance.randint(0, 120)))


def test_any_folder_name_gives_a_name_that_docker_takes_and_always_the_same():
    grammar = re.compile(r"\A[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")  # Docker's RestrictedNamePattern
    for seed in range(3000):
        folder = any_folder_name(random.Random(seed))
        name = tazpod.legal_name(folder)
        assert grammar.match(name) and "\n" not in name, (seed, folder)
        assert len(name) <= 63, (seed, folder)  # also a host name
        assert name == tazpod.legal_name(folder) == tazpod.legal_name(name[: -len("-lab")]), (seed, folder)
        written = tazpod.CONFIG_TEMPLATE.format(image=tazpod.DEFAULT_IMAGE, name=name, prefix="p")
        assert parsed(written).container_name == name, (seed, folder)


# -- finding the project


def test_the_project_is_found_from_below_and_the_nearest_wins(project):
    inner = project / "a/inner"
    deep = inner / "b/c"
    deep.mkdir(parents=True)
    assert tazpod.find_project(deep) == project
    tazpod.init_project(inner)
    assert tazpod.find_project(deep) == tazpod.find_project(inner) == inner
    assert tazpod.find_project(project / "a") == project


def test_a_file_named_tazpod_is_no_project(tmp_path):
    (tmp_path / ".tazpod").write_text("")
    assert tazpod.find_project(tmp_path) is None


# -- init


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    folder = tmp_path / unicodedata.normalize("NFC", "My Project! ☃")
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_init_writes_the_envelope_for_its_owner_alone(empty):
    assert tazpod.main(["init"]) == 0
    assert sorted(files_below(empty)) == [
        f".tazpod/{name}" for name in (".gitignore", "Dockerfile.ai", "config.yaml")
    ]
    for folder in (".tazpod", ".tazpod/vault"):
        assert mode(empty / folder) == 0o700
    for name in files_below(empty):
        assert mode(empty / name) == 0o600
    assert (empty / ".tazpod/Dockerfile.ai").read_text() == tazpod.DOCKERFILE
    assert load_config(empty) == Config(empty, "My-Project-lab", program="docker")


def test_init_takes_image_and_name(empty):
    assert tazpod.main(["init", "--image", "example.com/me/box:7", "--name", "box.7"]) == 0
    assert load_config(empty) == Config(empty, "box.7", "example.com/me/box:7", program="docker")


@pytest.mark.parametrize(
    "words", [["--name=-x"], ["--name", "a b"], ["--name", "x"], ["--image=-x"], ["--image", "Upper"]]
)
def test_init_refuses_what_docker_would_and_writes_nothing(empty, words, capfd):
    assert tazpod.main(["init", *words]) == 2
    assert "no engine accepts" in capfd.readouterr().err
    assert list(empty.iterdir()) == []


def test_init_never_overwrites(empty, capfd):
    tazpod.main(["init"])
    for name in files_below(empty):
        (empty / name).write_text(f"mine: {name}\n")
    (empty / ".tazpod/Dockerfile.ai").unlink()
    (empty / ".tazpod/Dockerfile.ai").symlink_to("nowhere")
    before = files_below(empty)
    capfd.readouterr()
    assert tazpod.main(["init", "--image", "other", "--name", "other"]) == 0
    assert files_below(empty) == before
    assert os.readlink(empty / ".tazpod/Dockerfile.ai") == "nowhere"
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 3 and all(line.endswith("is there already and stays as it is") for line in told)


def test_init_fills_in_what_is_missing(empty):
    (empty / ".tazpod").mkdir(mode=0o755)
    (empty / ".tazpod/config.yaml").write_text("user: dev\n")
    assert tazpod.main(["init"]) == 0
    assert (empty / ".tazpod/config.yaml").read_text() == "user: dev\n"
    assert (empty / ".tazpod/Dockerfile.ai").exists() and (empty / ".tazpod/.gitignore").exists()


def test_git_is_offered_only_what_describes_the_environment(empty):
    tazpod.main(["init"])
    for name in (
        *(
            "vault/vault.tar.aes",
            "vault/history/vault-1.tar.aes",
            "vault/.lock",
            "run/x.lease",
            ".aws/config",
        ),
        *("vault/vault.tar.aes.go", ".claude/token", ".pi/x", "config.yaml.bak", ".config.yaml.1234.tmp"),
        *("vault/config.yaml", "vault/.gitignore", "run/Dockerfile.ai"),
    ):
        path = empty / ".tazpod" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("secret")
    (empty / "main.py").write_text("")
    clean = {"PATH": os.environ["PATH"], "HOME": str(empty.parent), "GIT_CONFIG_NOSYSTEM": "1"}

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], env=clean, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    added = git("add", "-A", "-n")
    assert sorted(re.findall(r"^add '(.*)'$", added, re.M)) == [
        *(".tazpod/.gitignore", ".tazpod/Dockerfile.ai", ".tazpod/config.yaml", "main.py")
    ]


@pytest.mark.parametrize("value", ["!!bool [x]", "!!int {a: b}", "!!str [x]", "!!null [x]", "!!bool {}"])
@pytest.mark.parametrize("name", ["image", "network.mtu", "vault.keep", "features.debug"])
def test_a_tag_that_lies_is_wrong_usage(name, value):
    section, _, leaf = name.rpartition(".")
    text = f"{section}: {{{leaf}: {value}}}" if section else f"{leaf}: {value}"
    with pytest.raises(tazpod.UsageError, match=f":1: {name}: must be"):
        parsed(text)


@pytest.mark.parametrize(
    "text, name",
    [
        ('shell: "/\\ud800"', "shell"),
        ('image: "\\udcff"', "image"),
        ('env: {A: "\\ud800"}', "env"),
        ('env: {"\\ud800": x}', "env"),
        ('docker: {args: [x, "\\udfff"]}', "docker.args"),
        ('build: {context: "\\ud800"}', "build.context"),
    ],
)
def test_a_character_that_is_none_is_wrong_usage(text, name):
    """Only the reader of long texts takes it."""
    with pytest.raises(tazpod.UsageError, match=f":3: {name}: holds a character that is none"):
        parsed(f"#{'x' * 9000}\n\n{text}\n")
    assert parse_config(f'#{"x" * 9000}\n"\\ud800": x\n', PROJECT)[0] == parsed("")


@pytest.mark.parametrize("piece", ["[", "- ", "{a: "])
@pytest.mark.parametrize("size", [8000, 60_000, 400_000])
def test_a_config_nested_too_deep_is_no_crash(piece, size, tmp_path):
    (tmp_path / ".tazpod").mkdir()
    (tmp_path / tazpod.CONFIG_PATH).write_text("a: &a\n " * (piece == "[") + piece * (size // len(piece)))
    done = run_cli("config", cwd=tmp_path)
    assert done.returncode == tazpod.USAGE
    assert "a fault in tazpod" not in done.stderr
