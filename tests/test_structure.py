"""The shape of the module: sections call upward, nothing runs at import, one source of truth."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import symtable
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, run_cli, write_stub

import tazpod

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SOURCE = (ROOT / "tazpod.py").read_text()
TREE = ast.parse(SOURCE)
BANNERS = [
    (number, int(found[1]))
    for number, line in enumerate(SOURCE.splitlines(), 1)
    if (found := re.match(r"# ── (\d+)\. [a-z ]+ ─+$", line))
]
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
PUBLIC = [
    node
    for owner in (TREE, *(item for item in TREE.body if isinstance(item, ast.ClassDef)))
    for node in owner.body
    if isinstance(node, FUNCTION) and not node.name.startswith("_")
]


def section_of(line: int) -> int:
    return max((number for start, number in BANNERS if start <= line), default=-1)


def defined_by(node: ast.stmt) -> list[str]:
    """The module-level names that a statement defines."""
    if isinstance(node, FUNCTION):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", ast.Pass())]
    return [leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]


def global_uses(table: symtable.SymbolTable) -> Iterator[tuple[int, str]]:
    """The module-level names that each function under `table` uses, with its line."""
    for child in table.get_children():
        if isinstance(child, symtable.Function):
            yield from ((child.get_lineno(), name) for name in child.get_globals())
        yield from global_uses(child)


def test_the_sections_stand_in_order_and_are_those_of_the_docstring():
    numbers = [number for _, number in BANNERS]
    listed = [int(n) for n in re.findall(r"^    (\d+) +[a-z]", ast.get_docstring(TREE, clean=False), re.M)]
    assert numbers == sorted(set(numbers)) == listed
    assert {0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11} <= set(numbers)


def test_a_section_calls_only_upward():
    home = {name: section_of(node.lineno) for node in TREE.body for name in defined_by(node)}
    uses = list(global_uses(symtable.symtable(SOURCE, "tazpod.py", "exec")))
    uses += [
        (node.lineno, leaf.id)
        for node in ast.walk(TREE)
        if isinstance(node, (ast.arg, ast.AnnAssign, ast.FunctionDef))
        for note in (getattr(node, "annotation", None), getattr(node, "returns", None))
        for leaf in ast.walk(note or ast.Pass())
        if isinstance(leaf, ast.Name)
    ]
    assert len(uses) > 500
    downward = [
        f"line {line}: section {section_of(line)} uses {name} of section {home[name]}"
        for line, name in uses
        if home.get(name, -1) > section_of(line)
    ]
    assert downward == []


def test_main_is_the_last_definition_and_stands_in_the_last_section():
    assert [node.name for node in TREE.body[-3:-1]] == ["main", "program"]
    assert section_of(TREE.body[-3].lineno) == 11
    assert ast.unparse(TREE.body[-1]) == "if __name__ == '__main__':\n    program()"


@pytest.mark.parametrize("lower, upper", [(5, 6), (6, 5), (5, 7), (7, 5), (6, 7), (7, 6)])
def test_container_vault_and_storage_never_call_each_other(lower, upper):
    theirs = {name for node in TREE.body if section_of(node.lineno) == upper for name in defined_by(node)}
    ours = [node for node in TREE.body if section_of(node.lineno) == lower]
    used = {leaf.id for node in ours for leaf in ast.walk(node) if isinstance(leaf, ast.Name)}
    assert used & theirs == set()


def test_module_level_holds_only_definitions_and_constants():
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef)
    docstring, *middle, _ = TREE.body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
    too_old = middle.pop(2)  # before anything that an older Python cannot do
    assert isinstance(too_old, ast.If) and ast.unparse(too_old.test) == "sys.version_info < (3, 9)"
    assert [type(node) for node in too_old.body] == [ast.Raise]
    (rest,) = [node for node in middle if not isinstance(node, allowed)]
    assert isinstance(rest, ast.If) and ast.unparse(rest.test) == "TYPE_CHECKING"
    assert all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in rest.body)
    assert all(ast.unparse(call.func) == "Late" for call in rest.orelse[0].value.elts)
    classes = {node.name for node in TREE.body if isinstance(node, ast.ClassDef)}
    harmless = classes | {"re.compile", "partial", "bytes", "option", "name.split", "STORAGE_HINTS.values"}
    calls = {
        ast.unparse(leaf.func)
        for node in middle
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for leaf in ast.walk(node)
        if isinstance(leaf, ast.Call)
    }
    assert calls <= harmless


def test_no_default_is_read_from_a_record():
    """What a dataclass would give there is a descriptor in a NamedTuple, and equal to nothing."""
    records = {n.name for n in TREE.body if isinstance(n, ast.ClassDef) and n.bases}
    read = [n for n in ast.walk(TREE) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    assert [(n.lineno, n.attr) for n in read if n.value.id in records and not n.attr.startswith("_")] == []


WATCHED = """
import sys
def watch(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & 3
    if writes or event.split(".")[0] in ("subprocess", "socket", "shutil", "tempfile") or event in (
        "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.mkdir", "os.remove", "os.rename", "os.chmod",
    ):
        print("HAPPENED", event, args)
sys.addaudithook(watch)
sys.path.insert(0, sys.argv.pop(1))
import tazpod
code = tazpod.main(sys.argv[1:]) if sys.argv[1:] else 0
print("LOADED", *sorted({name.split(".")[0] for name in sys.modules} & {"plumbum", "yaml", "subprocess"}))
sys.exit(code)
"""


@pytest.mark.parametrize("words", [[], ["--help"], ["help", "unlock"], ["--version"]])
def test_import_and_help_run_nothing_write_nothing_and_load_no_library(words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCHED, str(ROOT), *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "HAPPENED" not in done.stdout
    assert done.stdout.splitlines()[-1] == "LOADED"
    assert list(tmp_path.iterdir()) == []


def imports() -> list[tuple[int, str]]:
    found = []
    for leaf in ast.walk(TREE):
        if isinstance(leaf, ast.Import):
            found += [(leaf.lineno, alias.name) for alias in leaf.names]
        elif isinstance(leaf, ast.ImportFrom):
            found.append((leaf.lineno, str(leaf.module)))
    return found


def test_the_libraries_are_only_imported_through_need():
    assert [found for found in imports() if found[1].split(".")[0] in ("plumbum", "yaml")] == []


@pytest.mark.parametrize("library, section", [("plumbum", 3), ("yaml", 4)])
def test_one_section_knows_a_library(library, section):
    """Elsewhere it is a text at most: what to install, what goes into the container."""
    used = {section_of(n.lineno) for n in ast.walk(TREE) if isinstance(n, ast.Name) and n.id == library}
    assert used == {section}
    asked = {
        section_of(n.lineno)
        for n in ast.walk(TREE)
        if isinstance(n, ast.Call) and ast.unparse(n) == f"need({library!r})"
    }
    assert asked == {section}


def test_no_shell_interprets_a_string_on_the_host():
    calls = [leaf for leaf in ast.walk(TREE) if isinstance(leaf, ast.Call)]
    assert [c.lineno for c in calls for k in c.keywords if k.arg == "shell"] == []
    forbidden = re.compile(r"os\.(system|popen|spawn.*)|subprocess\..*|eval|exec|compile|__import__")
    found = [ast.unparse(c) for c in calls if forbidden.fullmatch(ast.unparse(c.func))]
    assert found == ["subprocess.Popen(list(argv), **{**pipes, **options, 'env': environment})"]  # of `spawn`


def test_no_error_is_swallowed_bare_and_only_main_exits():
    assert [n.lineno for n in ast.walk(TREE) if isinstance(n, ast.ExceptHandler) and n.type is None] == []
    calls = [ast.unparse(n) for n in ast.walk(TREE) if isinstance(n, ast.Call)]
    assert [c for c in calls if c.startswith(("sys.exit(", "os._exit("))] == ["os._exit(main())"]


def test_only_section_2_prints():
    printing = [n for n in ast.walk(TREE) if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"]
    assert {section_of(n.lineno) for n in printing} == {2}


def lines_of_code() -> int:
    """The lines that are neither empty, nor a comment, nor a docstring."""
    aside = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(SOURCE).readline):
        if token.type not in aside:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(TREE):
        if isinstance(node, (ast.Module, *FUNCTION)) and ast.get_docstring(node) is not None:
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


MOST_CONDITIONALS = 4  # in a thousand lines of code


def test_what_is_decided_is_decided_by_a_plain_if():
    found = [node.lineno for node in ast.walk(TREE) if isinstance(node, ast.IfExp)]
    assert 1000 * len(found) / lines_of_code() <= MOST_CONDITIONALS
    assert [line for line in found if section_of(line) in (0, 1, 2, 3)] == []


def test_a_name_is_given_its_value_on_a_line_of_its_own():
    pairs = [
        node.lineno
        for node in ast.walk(TREE)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.Tuple)
    ]
    assert len(pairs) <= 1  # the imports that wait


def test_no_function_is_longer_than_one_glance():
    long = {
        n.name for n in ast.walk(TREE) if isinstance(n, ast.FunctionDef) and n.end_lineno - n.lineno >= 45
    }
    assert long == set()  # a function is read at one glance


def local_names(table: symtable.SymbolTable) -> Iterator[str]:
    for child in table.get_children():
        if child.get_type() == "function":
            yield from (
                name.get_name() for name in child.get_symbols() if name.is_local() or name.is_parameter()
            )
        yield from local_names(child)


def test_no_local_name_hides_a_function_of_the_module():
    ours = {node.name for node in TREE.body if isinstance(node, FUNCTION)}
    assert (
        ours & set(local_names(symtable.symtable(SOURCE, "tazpod.py", "exec"))) == set()
    )  # one name means one thing


@pytest.mark.parametrize("node", PUBLIC, ids=lambda node: node.name)
def test_every_public_function_and_class_says_what_it_is(node):
    assert len(ast.get_docstring(node) or "") > 10


def test_it_is_python_3_9():
    ast.parse(SOURCE, feature_version=(3, 9))
    assert [module for _, module in imports() if module.split(".")[0] == "tomllib"] == []
    used = {leaf.id for leaf in ast.walk(TREE) if isinstance(leaf, ast.Name)}
    assert used & {"aiter", "anext", "EncodingWarning", "ExceptionGroup"} == set()


def script_metadata() -> dict:
    """The reference implementation's regular expression (PEP 723)."""
    pattern = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    blocks = [match for match in re.finditer(pattern, SOURCE) if match["type"] == "script"]
    assert len(blocks) == 1
    return tomllib.loads("".join(line[2:] for line in blocks[0]["content"].splitlines(keepends=True)))


def test_the_one_copied_file_asks_for_what_the_package_asks_for():
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert script_metadata() == {key: package[key] for key in ("requires-python", "dependencies")}


def test_the_version_is_one_and_the_newest_of_the_changelog():
    assert re.findall(r'^__version__ = "(.+)"$', SOURCE, re.M) == [tazpod.__version__]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] in ("Unreleased", tazpod.__version__)


@pytest.mark.parametrize("path", ["Dockerfile.ai", ".tazpod/Dockerfile.ai"])
def test_the_dockerfile_has_one_source_of_truth(path):
    assert (ROOT / path).read_text() == tazpod.DOCKERFILE


def test_the_repositorys_own_envelope_is_what_init_writes():
    assert (ROOT / ".tazpod/.gitignore").read_text() == tazpod.GITIGNORE
    config = tazpod.parse_config((ROOT / ".tazpod/config.yaml").read_text(), Path("/x/tazpod"))
    assert config == (tazpod.Config(Path("/x/tazpod"), "tazpod-lab"), [])


CONTRACT = [
    *(".tazpod", ".tazpod/config.yaml", ".tazpod/Dockerfile.ai", "vault.tar.aes", "/workspace"),
    *(".vault_pass", "/workspace/.tazpod/.aws/config", "/tmp/tazpod-sync.log", "__internal_sync_daemon"),
    *("tazzo/tazpod-ai:latest", "tazpod", "tazlab-bootstrap", "tazlab-storage", "eu-central-1", "64m", 50),
    *("docker", "run", "-d", "--name", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"),
    *("--dns", "1.1.1.1", "1.0.0.1", "-v", "-e", "sleep", "infinity", "start", "stop", "rm", "exec"),
    *("-it", "-w", "/bin/bash", "bash", "-lc", "mountpoint", "-q", "container", "inspect"),
    *("image", "container_name", "user", "build.dockerfile", "build.context", "features.ghost_mode"),
    *("features.debug", "aws_sso.profile", "aws_sso.bucket", "aws_sso.region", "aws_sso.start_url"),
    *("aws_sso.account_id", "aws_sso.role_name", "vault.retention", "vault.size", "vault.keep"),
    *("mode", "ghost_mode", "providers", "active_provider", "version"),
]


@pytest.mark.parametrize("name", CONTRACT)
def test_every_name_of_the_contract_is_there(name):
    assert name in {leaf.value for leaf in ast.walk(TREE) if isinstance(leaf, ast.Constant)}


@pytest.mark.parametrize("template", ["HOST_CWD=", "/home/", "AWS_CONFIG_FILE=", "/.ssh:ro"])
def test_every_template_of_the_contract_is_there(template):
    texts = [leaf.value for leaf in ast.walk(TREE) if isinstance(leaf, ast.Constant)]
    assert any(template in text for text in texts if isinstance(text, str))


# -- a bare Python: -S leaves out site-packages, so neither library is there


@pytest.mark.parametrize("words", [["up"], ["down"], ["unlock"], ["history"], []])
def test_a_bare_python_says_in_one_line_which_command_to_type(words, project):
    done = run_cli(*words, flags=["-I", "-S"])
    assert (done.returncode, done.stdout) == (127, "")
    error, hint = done.stderr.splitlines()
    assert error == "tazpod: error: the Python libraries plumbum and PyYAML are not installed"
    assert hint == f"hint: {sys.executable} -m pip install plumbum PyYAML"  # the tests run in a venv


@pytest.mark.parametrize(
    "python, managed, programs, hint",
    [
        ("/usr/bin/python3", True, ["apt-get", "uv"], "sudo apt-get install python3-plumbum python3-yaml"),
        ("/usr/bin/python3", True, ["dnf"], "sudo dnf install python3-plumbum python3-pyyaml"),
        ("/usr/bin/python3", True, ["uv"], f"uv run {tazpod.__file__}"),
        ("/usr/bin/python3", True, [], "/usr/bin/python3 -m venv FOLDER"),
        ("/opt/python/bin/python3", False, ["apt-get"], "/opt/python/bin/python3 -m pip install"),
        ("/opt/python/bin/python3", True, ["apt-get", "uv"], "uv run "),
    ],
)
def test_what_installs_the_libraries_is_what_works_on_this_host(python, managed, programs, hint):
    assert tazpod.way_to_install(python, managed, programs).startswith(hint)
    assert "tazpod-py" not in SOURCE + (ROOT / "README.md").read_text()


def test_an_older_python_is_told_in_one_line_before_anything_else():
    ast.parse(SOURCE, feature_version=(3, 7))
    script = "import sys; sys.version_info = (3, 8, 1); exec(compile(sys.stdin.read(), 'tazpod.py', 'exec'))"
    done = subprocess.run([sys.executable, "-c", script], input=SOURCE, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("tazpod: error: this needs Python 3.9 or later, and this is ")


# -- the release: one file


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    for name, umask, zone in (("tazpod.pyz", "022", "UTC"), ("again.pyz", "077", "Asia/Tokyo")):
        script = f'umask {umask} && exec "$0" "$@"'
        argv = ["sh", "-c", script, sys.executable, str(ROOT / "tests/release"), str(folder / name)]
        subprocess.run(argv, check=True, env={"SOURCE_DATE_EPOCH": "1700000000", "TZ": zone})
    return folder / "tazpod.pyz"


def test_two_builds_of_a_release_are_the_same_to_the_byte(release):
    assert release.read_bytes() == release.with_name("again.pyz").read_bytes()


def test_a_release_runs_where_nothing_is_installed(release, project):
    bare = [sys.executable, "-I", "-S", str(release)]
    done = subprocess.run([*bare, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tazpod {tazpod.__version__}\n", "")
    done = subprocess.run([*bare, "config"], capture_output=True, text=True, cwd=project)
    assert done.returncode == 0 and "container_name" in done.stdout, done.stderr


def test_what_a_release_puts_into_the_container_is_what_the_file_puts_there(release, tmp_path):
    words = "import tazpod, pathlib, sys; sys.stdout.buffer.write(repr(sorted(tazpod.tool_files())).encode())"
    script = f"import sys; sys.path.insert(0, {str(release)!r}); {words}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, check=True)
    assert done.stdout == repr(sorted(tazpod.tool_files())).encode()


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["help", "lock"], ["up", "--help"], ["init"]])
def test_a_bare_python_still_helps_and_starts_a_project(words, tmp_path):
    done = run_cli(*words, flags=["-I", "-S"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["nonsense"], ["unlock", "--nonsense"], ["pull", "nonsense"]])
def test_a_bare_python_still_tells_wrong_usage(words, project):
    assert run_cli(*words, flags=["-I", "-S"]).returncode == 2


def test_a_copy_of_the_one_file_runs_anywhere(tmp_path):
    copy = tmp_path / "elsewhere.py"
    copy.write_text(SOURCE)
    done = subprocess.run([sys.executable, str(copy), "--version"], capture_output=True, text=True)
    assert done.stdout == f"tazpod {tazpod.__version__}\n"


def test_a_missing_program_is_named_with_its_cure(project, stub_path):
    (stub_path / "docker").unlink()
    done = run_cli("up", env={"PATH": str(stub_path), "HOME": str(project.parent / "home")})
    assert done.returncode == 127
    assert done.stderr.splitlines() == [
        "tazpod: error: docker is not installed, or not on PATH",
        "hint: install Docker: https://docs.docker.com/engine/install/",
    ]
    write_stub(stub_path, "docker", "exit 1")
    assert run_cli("up", env={"PATH": str(stub_path), "HOME": str(project.parent / "home")}).returncode == 1


@pytest.mark.parametrize("rest", ["", '"ServerVersion": "", "SystemTime": "", '])
def test_doctor_calls_no_engine_well_that_refuses(project, stub_path, rest):
    said = "permission denied while trying to connect: dial unix /x.sock: connect: permission denied"
    write_stub(stub_path, "docker", f"""echo '{{{rest}"ServerErrors": ["{said}"]}}'""")
    done = run_cli("doctor", env={"PATH": f"{stub_path}:/usr/bin:/bin", "HOME": str(project.parent / "home")})
    lines = [line.split() for line in done.stdout.splitlines()]
    told = [" ".join(words) for words in lines if words[1] in ("engine", "clock")]
    assert told == ["failure engine the Docker engine refuses this user"]
