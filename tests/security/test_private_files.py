"""Another user of the machine creates Dray's folders and files first, and gains nothing by it."""

import grp
import os
import pwd
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.private_files import (
    NotPrivate,
    check_private_folder,
    check_writable_folder,
    parent_folder,
    private_folder,
    read_private,
    writable_folder,
    write_private,
)

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder like /tmp: everybody may create names in it. pytest's own folders are closed to other users."""
    with tempfile.TemporaryDirectory(prefix="dray-shared-") as name:
        Path(name).chmod(0o1777)
        yield Path(name)


def as_nobody(act: Callable[[], object]) -> None:
    """Calls a function as another user, in a process of its own."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            act()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_folder_and_its_files_are_for_this_user_alone(tmp_path: Path) -> None:
    os.umask(0)
    try:
        folder = private_folder(tmp_path / "state" / "dray")
        write_private(folder / "token", "secret")
    finally:
        os.umask(0o022)
    assert (mode(folder.parent), mode(folder), mode(folder / "token")) == (0o700, 0o700, 0o600)
    assert read_private(folder / "token") == "secret"
    assert private_folder(folder) == folder, "a second start uses it again"
    assert [file.name for file in folder.iterdir()] == ["token"]


@as_root
@pytest.mark.parametrize("taken", [0o700, 0o755, 0o777])
def test_a_folder_that_another_user_made_first_is_refused(shared: Path, taken: int) -> None:
    folder = shared / "dray-0"

    def take() -> None:
        folder.mkdir()
        folder.chmod(taken)

    as_nobody(take)
    for make in (private_folder, writable_folder):
        with pytest.raises(NotPrivate, match="belongs to user 65534"):
            make(folder)
    for check in (check_private_folder, check_writable_folder, parent_folder):
        with pytest.raises(NotPrivate, match="belongs to user 65534"):
            check(folder)


@as_root
def test_a_token_that_another_user_put_there_is_never_read(shared: Path) -> None:
    token = shared / "token"
    as_nobody(lambda: token.write_text("theirs"))
    with pytest.raises(NotPrivate, match="belongs to user 65534"):
        read_private(token)
    write_private(token, "ours")
    assert token.stat().st_uid == os.geteuid() and read_private(token) == "ours"


def test_links_are_refused_and_never_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(NotPrivate, match="is a link"):
        private_folder(link)
    precious = target / "precious"
    precious.write_text("precious")
    precious.chmod(0o600)
    (tmp_path / "token").symlink_to(precious)
    with pytest.raises(NotPrivate, match="is a link"):
        read_private(tmp_path / "token")
    write_private(tmp_path / "token", "new")
    assert precious.read_text() == "precious" and not (tmp_path / "token").is_symlink()


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "later")
    with pytest.raises(NotPrivate, match="is a link"):
        private_folder(link)


def test_a_pipe_in_place_of_a_secret_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token", 0o600)
    with pytest.raises(NotPrivate, match="is not a file"):
        read_private(tmp_path / "token")


def test_open_permissions_are_refused_with_the_command_that_mends_them(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(NotPrivate, match=f"mode 755.*chmod go= {folder}"):
        private_folder(folder)
    assert writable_folder(folder) == folder, "models may be read by others"
    folder.chmod(0o777)
    with pytest.raises(NotPrivate, match=f"chmod go-w {folder}"):
        writable_folder(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotPrivate, match="is not a folder"):
        private_folder(tmp_path / "file")


@as_root
def test_a_group_may_write_where_nobody_else_is_in_it(shared: Path) -> None:
    """Many systems give each user such a group, and umask 002: without this, no folder there would do."""
    own = next(u for u in pwd.getpwall() if u.pw_uid and [u.pw_name, []] == [*grp.getgrgid(u.pw_gid)[::3]])
    another = next(group.gr_gid for group in grp.getgrall() if group.gr_name != own.pw_name)

    folder = shared / "models"
    folder.mkdir()

    def check(group_id: int) -> None:
        os.chown(folder, own.pw_uid, group_id)
        folder.chmod(0o775)
        os.seteuid(own.pw_uid)
        try:
            check_writable_folder(folder)
        finally:
            os.seteuid(0)

    check(own.pw_gid)
    with pytest.raises(NotPrivate, match=f"chmod go-w {folder}"):
        check(another)


def test_a_place_for_something_new_may_be_shared_as_tmp_is(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(shared)
    assert parent_folder(tmp_path / "link") == shared.resolve()
    with pytest.raises(NotPrivate, match=f"chmod go-w {shared}"):
        writable_folder(shared)
    shared.chmod(0o777)
    with pytest.raises(NotPrivate, match=f"chmod go-w {shared}"):
        parent_folder(shared)
    assert mode(parent_folder(tmp_path / "new" / "one")) == 0o755


def test_the_owner_and_mode_of_a_pods_volume_are_its_drivers(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.chmod(0o777)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert writable_folder(shared) == shared
    with pytest.raises(NotPrivate):
        private_folder(shared)


@as_root
def test_a_link_of_another_user_leads_nowhere(shared: Path, tmp_path: Path) -> None:
    (shared / "ours").symlink_to(tmp_path)
    assert writable_folder(shared / "ours") == shared / "ours"
    as_nobody(lambda: (shared / "theirs").symlink_to(tmp_path))
    with pytest.raises(NotPrivate, match="is a link"):
        writable_folder(shared / "theirs")
