"""A fresh host: the real `aws sso login` against a stand-in, and the vault from a real store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import enginelib
import pytest
import s3lib
from enginelib import Place, Terminal, docker
from s3lib import HISTORY, LATEST, SSO, Cloud, md5

import tazpod
from tazpod import Config

place = enginelib.place
DATA = Path(__file__).parent / "data/go-vault"
GO_VAULT = (DATA / "vault1.tar.aes").read_bytes()
PASSPHRASE = json.loads((DATA / "manifest.json").read_text())["vaults"]["vault1.tar.aes"]["passphrase"]

STRANGER = ("AKSTRANGER", "SKSTRANGER")
FETCH_IT = r"Log in and pull it from the storage\? \[y/N\] "
START_EMPTY = r"Start a new, empty"
ASK_NEW, ASK_AGAIN = "New passphrase: ", "The same again: "
CACHED_TOKEN = "cat ~/.aws/sso/cache/*.json | tr , '\\n' | grep -m1 accessToken | tr -d ' \"' | cut -d: -f2"


@pytest.fixture
def clouds(tmp_path: Path) -> Iterator[list[Cloud]]:
    found: list[Cloud] = []
    yield found
    for cloud in found:
        cloud.close()


def first_start(place: Place, clouds: list[Cloud], who: Sequence[str] = ()) -> tuple[Terminal, Cloud]:
    """A project as cloned, without a vault, at its first question; a cloud around its container."""
    if not (place.folder / ".tazpod").exists():
        place.init(*s3lib.CONFIG)
    person = place.terminal(**SSO)
    person.sees(FETCH_IT)
    cloud = Cloud(place.name, place.box / "cloud")
    clouds.append(cloud)
    cloud.sign_on(*who)
    cloud.put(GO_VAULT, f"content-sha256={hashlib.sha256(GO_VAULT).hexdigest()}")
    return person, cloud


def nowhere_on_disk(place: Place, secret: str) -> None:
    """Neither in the project nor on the container's disk."""
    for path in place.folder.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    words = ("exec", "-i", "-u", "0", place.name, "grep", "-rlsF", "-f", "-")
    found = docker(*words, "/home", "/tmp", "/var", "/run", "/dev/shm", data=secret.encode(), check=False)
    assert found == ""


@pytest.mark.engine
def test_a_fresh_host_is_back_at_work_in_one_command(place: Place, clouds: list[Cloud]) -> None:
    person, cloud = first_start(place, clouds)
    person.types("y")
    person.sees("ABCD-EFGH")
    assert place.ram().count("/home/tazpod/.aws") == 1, "before the login, ~/.aws is RAM"
    assert place.reads("findmnt -no FSTYPE ~/.aws || stat -f -c %T ~/.aws") == "tmpfs"
    person.sees("logged in as tazlab-bootstrap")
    person.sees("pulled")
    assert md5(GO_VAULT) == md5(place.sealed.read_bytes())
    person.answers((enginelib.AT_ENTRY, PASSPHRASE))
    person.sees("the vault is open")
    token = person.sh(CACHED_TOKEN)
    assert token.startswith("tok")
    assert person.sh("ls ~/secrets/.aws") == person.sh("ls ~/.aws")
    assert "sso" in person.sh("ls ~/secrets/.aws")
    assert "still valid" in person.sh("tazpod login 2>&1")
    assert person.sh("tazpod history --remote 2> /dev/null") == ""
    assert place.ram().count("/home/tazpod/.aws") == 1
    nowhere_on_disk_but_ram(place, token)
    person.shell()
    person.types("exit")
    person.answers((r"Save in the new format\? \[y/N\] ", "y"))
    assert person.ends() == 0
    for word in ("saved (", "pushed", "the vault is locked"):
        assert word in person.seen
    assert place.is_shut()
    nowhere_on_disk(place, token)
    profile = (place.folder / ".tazpod/.aws/config").read_text()
    assert "sso_session = tazlab-bootstrap" in profile
    kept = cloud.objects()
    assert kept.pop(LATEST) == md5(place.sealed.read_bytes())
    assert list(kept.values()) == [md5(GO_VAULT)]
    (version,) = (key[len(HISTORY) : -len(".tar.aes")] for key in kept)
    assert "tazpod login" in place.run("history", "--remote").stderr, "the login is locked with the vault"
    place.env |= s3lib.KEYS
    assert version in place.ok("history", "--remote")
    assert "opens and is whole" in place.ok("verify", "--remote", passphrase=PASSPHRASE)
    assert "is the sealed vault now" in place.ok("restore", version, "--remote", passphrase=PASSPHRASE)
    assert place.sealed.read_bytes() == GO_VAULT


def nowhere_on_disk_but_ram(place: Place, secret: str) -> None:
    """As above, while the vault is open: what lies in its mounts does not count."""
    for path in place.folder.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    script = (
        "find / -xdev -type f -size -1000k -newer /etc/hostname -print0 | xargs -0r grep -lsF -f /dev/fd/9"
    )
    words = ("exec", "-i", "-u", "0", place.name, "bash", "-c", f"cat > /dev/shm/t; {script} 9< /dev/shm/t")
    found = docker(*words, data=secret.encode(), check=False)
    docker("exec", "-u", "0", place.name, "rm", "/dev/shm/t")
    assert found == ""


@pytest.mark.engine
def test_a_new_vault_is_offered_only_when_the_storage_says_none(place: Place, clouds: list[Cloud]) -> None:
    s3lib.hasten(place, READ_LIMIT=1)
    person, cloud = first_start(place, clouds, STRANGER)
    person.types("y")
    person.sees("ABCD-EFGH")
    person.sees("logged in as")
    person.sees("AccessDenied")
    assert person.leaves() == 0
    assert START_EMPTY not in person.seen

    def goes_wrong(sign: str, *rules: dict[str, Any]) -> None:
        cloud.rules(*rules)
        again = place.terminal(**SSO)
        again.answers((FETCH_IT, "y"))
        again.sees(sign)
        assert again.leaves() == 0
        assert START_EMPTY not in again.seen
        assert not place.sealed.exists()

    every = {"method": "GET|HEAD", "times": 99}
    goes_wrong(
        "An error occurred", {**every, "do": "answer", "status": 404, "text": "<html>no such page</html>"}
    )
    goes_wrong("timeout|timed out", {**every, "do": "hang"})
    cloud.sign_on(*STRANGER)  # the token that is cached is not known any more
    for path in ("cli/cache", "boto/cache"):
        place.inside(f"rm -rf ~/.aws/{path}")
    cloud.rules()
    done = place.run("pull", **SSO)
    assert done.returncode == 1
    assert "the login has expired" in done.stderr
    assert "hint: tazpod login" in done.stderr
    place.configure("aws_sso.endpoint_url: http://127.0.0.1:9")
    goes_wrong("Could not connect")
    place.configure(f"aws_sso.endpoint_url: {s3lib.GATE}")
    assert cloud.objects() == {LATEST: md5(GO_VAULT)}

    cloud.store.aws("delete-object", "--bucket", s3lib.BUCKET, "--key", LATEST)
    place.inside("rm -rf ~/.aws/sso ~/.aws/cli")
    cloud.sign_on()
    last = place.terminal(**SSO)
    last.answers((FETCH_IT, "y"), (r"Start a new, empty one\? \[y/N\] ", "y"))
    last.answers((ASK_NEW, PASSPHRASE), (ASK_AGAIN, PASSPHRASE))
    last.sees("the vault is open")
    assert last.leaves() == 0
    assert "pushed" in last.seen
    assert cloud.objects() == {LATEST: md5(place.sealed.read_bytes())}


# -- the profile


def test_the_profile_is_written_from_the_config_and_beside_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / ".aws/config"
    config = Config(tmp_path, "lab", aws_start_url="https://x/start", aws_account_id="1", aws_role_name="Dev")
    assert tazpod.write_profile(Config(tmp_path, "lab"), path) is False
    assert not path.exists()
    path.parent.mkdir()
    path.write_text("# mine\n[profile other]\nregion = x\n")
    assert tazpod.write_profile(config, path) is True
    assert path.read_text() == (
        "# mine\n[profile other]\nregion = x\n\n"
        "[profile tazlab-bootstrap]\nsso_session = tazlab-bootstrap\nsso_account_id = 1\n"
        "sso_role_name = Dev\nregion = eu-central-1\n\n"
        "[sso-session tazlab-bootstrap]\nsso_start_url = https://x/start\nsso_region = eu-central-1\n"
        "sso_registration_scopes = sso:account:access\n"
    )
    before = path.read_bytes()
    assert tazpod.write_profile(config, path) is True
    assert path.read_bytes() == before


EVIL = """
[profile {}]
sso_session = x
sso_account_id = 999999999999
sso_role_name = Evil
[sso-session x]
sso_start_url = https://evil.test/start
sso_region = us-east-1
"""


@pytest.mark.parametrize("name", ["tazlab-bootstrap", '"tazlab-bootstrap"', "  tazlab-bootstrap"])
@pytest.mark.parametrize("mine", [True, False])
def test_what_the_config_says_of_the_login_stands_over_a_profile_that_was_there(
    tmp_path: Path, name: str, mine: bool
) -> None:
    path = tmp_path / "config"
    config = Config(tmp_path, "lab", aws_start_url="https://x/start", aws_account_id="1", aws_role_name="Dev")
    if mine:
        assert tazpod.write_profile(config, path) is True
    with path.open("a") as file:
        file.write(EVIL.format(name))
    assert tazpod.write_profile(config, path) is True
    found = tazpod.profile_in(path.read_text(), config.aws_profile)
    assert (found["sso_start_url"], found["sso_account_id"], found["sso_role_name"]) == (
        *("https://x/start", "1", "Dev"),
    )
    assert path.read_text().count("[profile tazlab-bootstrap]") == 1, "aws refuses a file with two"
    before = path.read_bytes()
    assert tazpod.write_profile(config, path) is True
    assert path.read_bytes() == before


@pytest.mark.parametrize("profile", ["work", "default"])
def test_a_profile_that_says_the_same_and_another_identity_is_not_used(tmp_path: Path, profile: str) -> None:
    path = tmp_path / "config"
    config = Config(
        tmp_path,
        "lab",
        aws_start_url="https://x/start",
        aws_account_id="1",
        aws_role_name="Dev",
        aws_profile=profile,
    )
    assert tazpod.write_profile(config, path) is True
    mine = path.read_text()
    if profile == "work":
        path.write_text(mine.replace("sso_role_name = Dev\n", "sso_role_name = Dev\nrole_arn = arn:evil\n"))
    else:
        path.write_text(f"{mine}\n[default]\nsso_session = evil\nsso_account_id = 9\nsso_role_name = Evil\n")
    assert tazpod.write_profile(config, path) is True
    text = path.read_text()
    assert "evil" not in text and "Evil" not in text
    assert tazpod.profile_in(text, profile)["sso_role_name"] == "Dev"


def test_a_profile_of_the_file_alone_is_told_before_the_login(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config"
    path.write_text(EVIL.format("tazlab-bootstrap"))
    assert tazpod.write_profile(Config(tmp_path, "lab", aws_role_name="Evil"), path) is True
    told = capfd.readouterr().err
    for word in (str(path), "https://evil.test/start", "999999999999", "Evil"):
        assert word in told
    with pytest.raises(tazpod.StorageError, match="is not the one of"):
        tazpod.write_profile(Config(tmp_path, "lab", aws_start_url="https://x/start"), path)
    assert path.read_text() == EVIL.format("tazlab-bootstrap")
