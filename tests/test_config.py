"""The configuration: its example, its defaults, and what is said about a wrong one."""

from __future__ import annotations

import base64
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from dapd.config import Config
from dapd.config.keyfiles import read_sealing_keys
from dapd.config.loading import load
from dapd.config.minimal import minimal_config
from dapd.errors import UsageError

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"
# Unset by default: their line in the example shows a value that is none.
UNSET = {
    ("server", "tls_certificate"),
    ("server", "tls_key"),
    ("leader", "peer_ca"),
    ("defaults", "helper_mode"),
    ("defaults", "batch_target_size"),
    ("admin", "socket"),
    ("admin", "listen"),
    ("admin", "tls_certificate"),
    ("admin", "tls_key"),
    ("admin", "hosts"),
    ("admin", "tokens"),
}
DATASTORE = '[datastore]\npath = "d.sqlite"\nsealing_keys = ["k"]\n'


def _write(directory: Path, text: str) -> Path:
    path = directory / "dapd.toml"
    path.write_text(text)
    return path


def _refusal(directory: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(_write(directory, text))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_example_shows_every_key_at_its_default(tmp_path: Path) -> None:
    """Uncommented, it is the code's defaults, no key more, no key less."""
    text = EXAMPLE.read_text()
    uncommented = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    shown = {
        (section, key): value
        for section, keys in tomllib.loads(uncommented).items()
        for key, value in keys.items()
    }
    config = load(_write(tmp_path, text))
    known = {
        (section, key): getattr(getattr(config, section), key)
        for section in Config.__struct_fields__
        for key in getattr(config, section).__struct_fields__
    }
    assert set(shown) == set(known)
    for place, value in known.items():
        if place[0] != "datastore":
            assert value in (None, ()) if place in UNSET else value == shown[place], place
    assert load(_write(tmp_path, uncommented)).keys == config.keys


def test_the_example_gives_each_key_a_reason() -> None:
    """A comment stands above every key."""
    lines = EXAMPLE.read_text().splitlines()
    for above, line in pairwise(lines):
        if re.match(r"(# )?\w+ = ", line):
            assert re.match(r"# (?!\w+ = )", above), line


def test_the_smallest_async_helper_is_under_15_lines(tmp_path: Path) -> None:
    """What `dapd init` writes is short, complete, and asynchronous."""
    text = minimal_config("helper", "https://helper.example/dap/")
    assert len(text.splitlines()) < 15
    assert load(_write(tmp_path, text)).helper.mode == "async"


@pytest.mark.parametrize(
    ("url", "listen"),
    [
        ("https://leader.example/", "127.0.0.1:8080"),
        ("http://127.0.0.1:9001/dap", "127.0.0.1:9001"),
        ("http://[::1]:9001/", "[::1]:9001"),
        ("http://localhost/", "localhost:80"),
    ],
)
def test_a_loopback_url_is_served_where_it_points(url: str, listen: str, tmp_path: Path) -> None:
    """A public URL belongs to the proxy in front, so dapd listens on this machine."""
    assert load(_write(tmp_path, minimal_config("leader", url))).server.listen == listen


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon may be started anywhere; absolute paths stay."""
    directory = tmp_path / "etc"
    directory.mkdir()
    _write(directory, '[datastore]\npath = "d.sqlite"\nsealing_keys = ["k", "/keys/old"]\n')
    monkeypatch.chdir(tmp_path)
    config = load(Path("etc/dapd.toml"))
    assert config.datastore.path == directory / "d.sqlite"
    assert config.datastore.sealing_keys == (directory / "k", Path("/keys/old"))


@pytest.mark.parametrize(
    ("listen", "address"),
    [("a.example:80", ("a.example", 80)), ("[::]:8080", ("::", 8080)), ("127.0.0.1:0", None)],
)
def test_listen_is_a_host_and_a_port(
    listen: str, address: tuple[str, int] | None, tmp_path: Path
) -> None:
    """Brackets are the URL's, not the address's; port 0 takes a free one."""
    config = load(_write(tmp_path, f'{DATASTORE}[server]\nlisten = "{listen}"\n'))
    assert config.server.address == (address or ("127.0.0.1", 0))


@pytest.mark.parametrize("listen", ["", "8080", ":8080", "::1:80", "a:b", "a:65536", "a:"])
def test_a_listen_that_is_no_address_is_refused(listen: str, tmp_path: Path) -> None:
    """With an example of one that is."""
    message = _refusal(tmp_path, f'{DATASTORE}[server]\nlisten = "{listen}"\n')
    assert "server.listen" in message
    assert "127.0.0.1:8080" in message


@pytest.mark.parametrize(
    ("text", "blamed"),
    [
        ("", "`datastore`"),
        (DATASTORE + "extra = 1", "datastore: unknown key `extra`; config.example.toml lists"),
        (DATASTORE + "[extra]", "unknown key `extra`; config.example.toml lists"),
        (DATASTORE + "[leader]\nslot = 2", "leader: unknown key `slot`; did you mean `slots`?"),
        (DATASTORE + "[servers]", "dapd.toml: unknown key `servers`; did you mean `server`?"),
        (
            "[datastore]\nsealing_key = ['k']",
            "unknown key `sealing_key`; did you mean `sealing_keys`",
        ),
        (DATASTORE + "[leader]\nslots = 'two'", "leader.slots: expected `int`, got `str`"),
        (DATASTORE + "[leader]\nslots = true", "leader.slots"),
        (DATASTORE + "[leader]\nmax_job_size = 0", "leader.max_job_size: expected `int` >= 1"),
        (DATASTORE + "[leader]\nmax_job_size = 99", "leader.min_job_size: is above"),
        (DATASTORE + "[leader]\nretry_max = 0.5", "leader.retry_min: is above"),
        (DATASTORE + "[server]\nread_timeout = nan", "server.read_timeout"),
        (DATASTORE + "[server]\ntls_key = 'k'", "server.tls_certificate: goes with server.tls_key"),
        (DATASTORE + "[server]\ntls_certificate = 'c'", "set both or none"),
        (DATASTORE + "[shutdown]\ngrace = -1", "shutdown.grace"),
        (DATASTORE + "[helper]\nmode = 'fast'", "helper.mode"),
        (DATASTORE + "[defaults]\nreport_expiry_age = 'none'", "defaults.report_expiry_age"),
        (DATASTORE + "[log\n", "line 4"),
        ("[datastore]\npath = 1\nsealing_keys = ['k']", "datastore.path: expected the path"),
        (DATASTORE + '[leader]\npeer_ca = "\\u0000"', "leader.peer_ca: expected the path"),
        ("[datastore]\npath = 'd'\nsealing_keys = []", "datastore.sealing_keys"),
        ("[datastore]\npath = 'd'\nsealing_keys = ['k', 'k']", "datastore.sealing_keys"),
    ],
)
def test_a_wrong_file_is_one_line_with_the_place(text: str, blamed: str, tmp_path: Path) -> None:
    """Which file, which key, and where to look."""
    message = _refusal(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'dapd.toml'}: ")
    assert blamed in message


REMOTE = {
    "listen": '"0.0.0.0:9464"',
    "hosts": '["dapd.example"]',
    "tls_certificate": '"c"',
    "tls_key": '"k"',
    "tokens": f'["read:{"A" * 43}", "operate:{"B" * 42}A"]',
}


def _admin(**keys: str | None) -> str:
    lines = [f"{key} = {value}" for key, value in keys.items() if value is not None]
    return "\n".join([DATASTORE, "[admin]", *lines])


def test_an_admin_listener_beyond_loopback_has_hosts_tls_and_tokens(tmp_path: Path) -> None:
    """All of them, and then its tokens are scopes and hashes."""
    admin = load(_write(tmp_path, _admin(**REMOTE))).admin
    assert (admin.address, admin.is_remote) == (("0.0.0.0", 9464), True)  # noqa: S104
    assert [scope for scope, _ in admin.token_hashes] == ["read", "operate"]
    assert admin.token_hashes[0][1] == bytes(32)
    for missing, blamed in (("hosts", "hosts"), ("tokens", "tokens"), ("tls_key", "tls_cert")):
        message = _refusal(tmp_path, _admin(**{**REMOTE, missing: None}))
        assert f"admin.{blamed}" in message
    message = _refusal(tmp_path, _admin(**{**REMOTE, "tls_key": None, "tls_certificate": None}))
    assert "admin.tls_certificate: is needed for a listener beyond loopback" in message


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:9464", "localhost:9464", "127.9.9.9:1"])
def test_an_admin_listener_on_loopback_has_no_tls_and_no_tokens(
    listen: str, tmp_path: Path
) -> None:
    """They would protect nothing: it serves no operation, and only this machine reaches it."""
    keys = {"listen": f'"{listen}"', "page": "true", "hosts": '["metrics.test"]'}
    admin = load(_write(tmp_path, _admin(**keys))).admin
    assert (admin.is_remote, admin.page, admin.hosts) == (False, True, ("metrics.test",))
    for key in ("tls_certificate", "tokens"):
        more = {**keys, key: REMOTE[key], "tls_key": REMOTE["tls_key"] if "tls" in key else None}
        assert f"admin.{key}: is only for a listener beyond" in _refusal(tmp_path, _admin(**more))


@pytest.mark.parametrize(
    ("key", "value", "blamed"),
    [
        ("tokens", '["read:' + "A" * 42 + '"]', "admin.tokens: an entry is not a scope and a hash"),
        (
            "tokens",
            '["read:' + "A" * 42 + 'B"]',
            "admin.tokens: an entry is not a scope and a hash",
        ),
        (
            "tokens",
            '["write:' + "A" * 43 + '"]',
            "admin.tokens: an entry is not a scope and a hash",
        ),
        ("tokens", '["' + "A" * 43 + '"]', "admin.tokens: an entry is not a scope and a hash"),
        (
            "hosts",
            '["https://dapd.example"]',
            'admin.hosts: "https://dapd.example" is not a host name',
        ),
        ("hosts", '["dapd.example:9464"]', 'admin.hosts: "dapd.example:9464" is not a host name'),
        ("hosts", '["*.example"]', 'admin.hosts: "*.example" is not a host name'),
        ("hosts", '[""]', 'admin.hosts: "" is not a host name'),
        ("listen", '"9464"', 'admin.listen: "9464" is not an address'),
        ("listen", '"127.0.0.1:8080"', "admin.listen: is the same as server.listen"),
    ],
)
def test_a_wrong_admin_listener_is_refused(
    key: str, value: str, blamed: str, tmp_path: Path
) -> None:
    """The place and the remedy; a token that stands where its hash should is not repeated."""
    assert blamed in _refusal(tmp_path, _admin(**{**REMOTE, key: value}))


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    """`dapd init` is the remedy."""
    with pytest.raises(UsageError, match="no such file; make one with `dapd init`"):
        load(tmp_path / "dapd.toml")


def test_the_whole_is_frozen(tmp_path: Path) -> None:
    """Nobody changes the configuration of a running daemon."""
    config = load(_write(tmp_path, DATASTORE))
    with pytest.raises(AttributeError):
        config.log.level = "debug"  # type: ignore[misc]


class TestSealingKeys:
    """``read_sealing_keys``: 32 bytes as base64url, readable by this user alone."""

    KEY = bytes(range(32))
    TEXT = base64.urlsafe_b64encode(KEY).decode().rstrip("=")

    def _config(self, directory: Path, text: str | None, mode: int = 0o600) -> Config:
        if text is not None:
            (directory / "k").write_text(text)
            (directory / "k").chmod(mode)
        return load(_write(directory, DATASTORE))

    def test_a_key(self, tmp_path: Path) -> None:
        """With or without an end of line."""
        assert read_sealing_keys(self._config(tmp_path, self.TEXT + "\n")) == [self.KEY]

    @pytest.mark.parametrize("text", ["", "AAAA", TEXT + "A", TEXT + "=", "é" * 43, "!" * 43])
    def test_f2_another_content_is_refused(self, text: str, tmp_path: Path) -> None:
        """The message names the file, never its content."""
        with pytest.raises(UsageError, match="k: not a sealing key"):
            read_sealing_keys(self._config(tmp_path, text))

    def test_a_missing_key(self, tmp_path: Path) -> None:
        """Its backup is the first remedy: a new key opens nothing."""
        with pytest.raises(UsageError, match="k: this sealing key is missing; restore it"):
            read_sealing_keys(self._config(tmp_path, None))

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
    def test_i9_a_key_that_others_may_read_is_refused(self, mode: int, tmp_path: Path) -> None:
        """With the command that fixes it."""
        with pytest.raises(UsageError, match=r"run `chmod 600 .*k`"):
            read_sealing_keys(self._config(tmp_path, self.TEXT, mode))
