"""Task files: what each party is told, what is made, what is refused."""

from __future__ import annotations

import re
import stat
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapd.crypto import HpkeKeypair, hash_token, hpke_seal
from dapd.errors import UsageError
from dapd.messages.common import BatchMode, HpkeConfig, Interval, Role, b64url_encode
from dapd.messages.task import Prio3Histogram, Prio3SumVec, TaskConfiguration
from dapd.protocol.task import TaskSettings
from dapd.taskfile import (
    ClientTask,
    CollectorTask,
    HelperTask,
    LeaderTask,
    TaskDraft,
    TaskFile,
    TaskFiles,
    aggregator_task,
    local_settings,
    new_task,
    parse_vdaf_spec,
    read_task_draft,
    read_task_file,
    to_toml,
    write_task_file,
    write_task_files,
)

DOCS = Path(__file__).parent.parent / "docs" / "tasks.md"
ROLES = ["leader", "helper", "collector", "client"]
PRECISION = 3600
HISTOGRAM: dict[str, int | str] = {"type": "histogram", "length": 10, "chunk_length": 4}
VDAFS: list[dict[str, int | str]] = [
    {"type": "count"},
    {"type": "sum", "max_measurement": 255},
    {"type": "sumvec", "length": 3, "max_measurement": 7},
    {"type": "histogram", "length": 5},
    {"type": "multihotcountvec", "length": 5, "max_weight": 2},
]


def _draft(**keys: Any) -> TaskDraft:
    return TaskDraft(
        **{
            "leader_aggregator_endpoint": "https://leader.example/dap/",
            "helper_aggregator_endpoint": "https://helper.example",
            "time_precision": PRECISION,
            "min_batch_size": 100,
            "batch_mode": "time-interval",
            "vdaf": {"type": "histogram", "length": 10},
            **keys,
        }
    )


def _refusal(directory: Path, text: str) -> str:
    path = directory / "task.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_task_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def _without(text: str, key: str) -> str:
    return re.sub(rf"^{key} = .*\n", "", text, flags=re.MULTILINE)


def _with(text: str, key: str, value: str) -> str:
    return f"{_without(text, key)}{key} = {value}\n"


@pytest.fixture(scope="module")
def files() -> TaskFiles:
    return new_task(_draft(task_interval=("2026-01-01", 86_400)))


class TestEachPartyGetsItsOwn:
    """Four files, each with only what that party may know."""

    OWN = (
        "vdaf_verify_key",
        "verification_key_id",
        "aggregator_auth_token",
        "collector_auth_token",
        "collector_hpke_config",
        "collector_hpke_private_key",
        "report_expiry_age",
    )

    @pytest.mark.parametrize(
        ("role", "own"),
        [
            ("leader", {0, 1, 2, 3, 4, 6}),
            ("helper", {0, 1, 2, 4, 6}),
            ("collector", {3, 4, 5}),
            ("client", set()),
        ],
    )
    def test_keys(self, role: str, own: set[int], files: TaskFiles) -> None:
        """Nobody but Aggregators holds the verification key, nobody but the Collector its key."""
        text = to_toml(getattr(files, role))
        held = {place for place, key in enumerate(self.OWN) if f"\n{key} = " in text}
        assert held == own
        assert f'\nrole = "{role}"\n' in text

    def test_what_they_share_is_the_same(self, files: TaskFiles) -> None:
        """One differing byte of the configuration would fail every report."""
        four: list[TaskFile] = [files.leader, files.helper, files.collector, files.client]
        assert len({(each.task_id, each.configuration.encode()) for each in four}) == 1
        assert files.leader.vdaf_verify_key == files.helper.vdaf_verify_key
        assert files.leader.aggregator_auth_token == files.helper.aggregator_auth_token
        assert files.leader.collector_auth_token == files.collector.collector_auth_token
        assert files.leader.aggregator_auth_token != files.leader.collector_auth_token

    @pytest.mark.parametrize("role", ROLES)
    def test_i9_no_secret_shows_in_a_repr(self, role: str, files: TaskFiles) -> None:
        """A task that ends in a log or a traceback gives nothing away."""
        task = getattr(files, role)
        for each in fields(task):
            if each.name.endswith(("_key", "_token")):
                assert repr(getattr(task, each.name)) not in repr(task)

    @pytest.mark.parametrize("role", ROLES)
    def test_what_is_written_reads_back(self, role: str, files: TaskFiles, tmp_path: Path) -> None:
        """The file holds all of the task."""
        task = getattr(files, role)
        write_task_file(tmp_path / "t.toml", task)
        assert read_task_file(tmp_path / "t.toml") == task

    def test_a_key_of_another_party_is_refused(self, files: TaskFiles, tmp_path: Path) -> None:
        """A Collector's private key given to the Leader is told, not ignored."""
        text = _with(to_toml(files.leader), "collector_hpke_private_key", '"AA"')
        message = _refusal(tmp_path, text)
        assert "collector_hpke_private_key: does not belong in the leader's file; remove" in message


class TestWriting:
    """``write_task_files``: readable by this user alone, and nothing overwritten."""

    def test_four_files(self, files: TaskFiles, tmp_path: Path) -> None:
        paths = write_task_files(tmp_path / "new" / "task", files)
        assert [path.name for path in paths] == [f"{role}.toml" for role in ROLES]
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in paths)

    def test_an_existing_file_stays_and_no_other_is_written(
        self, files: TaskFiles, tmp_path: Path
    ) -> None:
        (tmp_path / "collector.toml").write_text("mine")
        with pytest.raises(UsageError, match=r"collector\.toml: exists already"):
            write_task_files(tmp_path, files)
        assert [path.name for path in tmp_path.iterdir()] == ["collector.toml"]
        with pytest.raises(UsageError, match="File exists"):
            write_task_file(tmp_path / "collector.toml", files.client)
        assert (tmp_path / "collector.toml").read_text() == "mine"


class TestNewTask:
    """``new_task`` makes what the draft lacks and keeps what it has."""

    def test_secrets_are_fresh(self) -> None:
        """Two tasks of one draft share none."""
        one, other = new_task(_draft()), new_task(_draft())
        assert one.leader.task_id != other.leader.task_id
        assert one.leader.vdaf_verify_key != other.leader.vdaf_verify_key
        assert one.leader.aggregator_auth_token != other.leader.aggregator_auth_token
        assert one.collector.collector_auth_token != other.collector.collector_auth_token
        assert (
            one.collector.collector_hpke_private_key != other.collector.collector_hpke_private_key
        )

    def test_the_collectors_pair_opens_what_it_seals(self) -> None:
        """With the suite that every party must support."""
        task = new_task(_draft()).collector
        config = task.collector_hpke_config
        assert config.as_tuple[1:4] == (0x0020, 0x0001, 0x0001)
        keypair = HpkeKeypair(*config.as_tuple, task.collector_hpke_private_key)
        sealed = hpke_seal(config.as_tuple, b"i", b"a", b"share")
        assert keypair.open(b"i", b"a", *sealed) == b"share"

    def test_from_a_file_that_has_some_keys(self, tmp_path: Path, files: TaskFiles) -> None:
        """Any party's file, whole or in part, is a draft: its keys are kept."""
        path = tmp_path / "leader.toml"
        path.write_text(to_toml(files.leader))
        draft = read_task_draft(path)
        made = new_task(
            TaskDraft(
                **{
                    key: getattr(draft, key)
                    for key in TaskDraft.__struct_fields__
                    if key != "collector_hpke_config"
                }
            )
        )
        assert made.client == files.client
        assert made.leader.vdaf_verify_key == files.leader.vdaf_verify_key
        assert made.collector.collector_auth_token == files.leader.collector_auth_token

    def test_half_a_key_pair_is_refused(self, files: TaskFiles) -> None:
        """The Collector's file could not be made."""
        config = b64url_encode(files.leader.collector_hpke_config.encode())
        with pytest.raises(UsageError, match="give both or neither"):
            new_task(_draft(collector_hpke_config=config))

    @pytest.mark.parametrize(
        "key",
        [
            "leader_aggregator_endpoint",
            "helper_aggregator_endpoint",
            "time_precision",
            "min_batch_size",
            "batch_mode",
            "vdaf",
        ],
    )
    def test_what_only_people_can_decide_has_no_default(self, key: str) -> None:
        """Privacy hangs on it, or nobody else knows it."""
        with pytest.raises(UsageError, match=f"^{key}: missing"):
            new_task(_draft(**{key: None}))

    @pytest.mark.parametrize(
        ("key", "value"),
        [("time_precision", 0), ("min_batch_size", 2**64), ("batch_mode", "x"), ("vdaf", "count")],
    )
    def test_a_draft_made_in_python_is_checked_like_a_file(self, key: str, value: object) -> None:
        """The command line's numbers never went through TOML."""
        with pytest.raises(UsageError, match=f"^{key}: "):
            new_task(_draft(**{key: value}))

    @pytest.mark.parametrize(
        ("vdaf", "chunk_length"),
        [
            ({"type": "histogram", "length": 100}, 10),
            ({"type": "histogram", "length": 1}, 1),
            ({"type": "sumvec", "length": 10, "max_measurement": 1023}, 10),
        ],
    )
    def test_chunk_length_is_the_vdaf_drafts_advice(
        self, vdaf: dict[str, int | str], chunk_length: int
    ) -> None:
        """The square root of the encoded length, written into all four files."""
        made = new_task(_draft(vdaf=vdaf)).client.configuration.vdaf
        assert isinstance(made, Prio3Histogram | Prio3SumVec)
        assert made.chunk_length == chunk_length


class TestB7:
    """Endpoints byte for byte; what is unsafe needs its flag."""

    @pytest.mark.parametrize("slash", ["", "/", "//"])
    def test_b7_no_slash_is_added_or_doubled(self, slash: str) -> None:
        """The TaskConfiguration holds the URL as provisioned."""
        url = f"https://a.example/dap{slash}"
        configuration = new_task(_draft(leader_aggregator_endpoint=url)).client.configuration
        assert configuration.leader_aggregator_endpoint == url

    @pytest.mark.parametrize(
        "url", ["http://a.example/", "http://192.0.2.1:80/", "http://[2001:db8::1]/"]
    )
    def test_b7_http_beyond_loopback_needs_a_flag(self, url: str) -> None:
        """Tokens would travel unencrypted."""
        draft = _draft(helper_aggregator_endpoint=url)
        with pytest.raises(
            UsageError, match=r"^helper_aggregator_endpoint: .*--allow-insecure-http"
        ):
            new_task(draft)
        new_task(draft, allow_insecure_http=True)

    @pytest.mark.parametrize(
        "url", ["http://localhost:1/", "http://127.0.0.1:9/x", "http://127.1.2.3/", "http://[::1]/"]
    )
    def test_b7_http_on_loopback_needs_none(self, url: str) -> None:
        """Nothing leaves the machine."""
        new_task(_draft(helper_aggregator_endpoint=url))

    def test_b7_batches_of_one_need_a_flag(self) -> None:
        """Their result is one person's measurement."""
        draft = _draft(min_batch_size=1)
        with pytest.raises(UsageError, match=r"^min_batch_size: .*--allow-tiny-batches"):
            new_task(draft)
        new_task(draft, allow_tiny_batches=True)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "leader.example",
            "ftp://a.example/",
            "https://",
            "https:///x",
            "https://a.example/?",
            "https://a.example/#x",
            "https://u:p@a.example/",
            "https://a.example/ x",
            "https://ä.example/",
            "https://a.example:x/",
        ],
    )
    def test_b7_what_is_no_endpoint_is_refused(self, url: str) -> None:
        """Resources are appended to it, so it can't have a query."""
        with pytest.raises(UsageError, match=r"^leader_aggregator_endpoint: "):
            new_task(_draft(leader_aggregator_endpoint=url))

    @pytest.mark.parametrize("size", [0, 256])
    def test_b7_task_info_has_1_to_255_bytes(self, size: int) -> None:
        """As the draft's presentation language says."""
        with pytest.raises(UsageError, match=r"^task_info: "):
            new_task(_draft(task_info=b64url_encode(bytes(size))))


class TestC7:
    """Files speak seconds and ISO dates; the TaskConfiguration counts time precisions."""

    @pytest.mark.parametrize(
        "start",
        [
            "1767225600",
            '"1767225600"',
            '"2026-01-01"',
            "2026-01-01",
            "2026-01-01T00:00:00Z",
            '"2026-01-01T01:00:00+01:00"',
        ],
    )
    def test_c7_spellings_of_a_start(self, start: str, files: TaskFiles, tmp_path: Path) -> None:
        """All mean the same moment."""
        text = _with(to_toml(files.client), "task_interval", f"[{start}, 86400]")
        (tmp_path / "t.toml").write_text(text)
        task = read_task_file(tmp_path / "t.toml")
        assert task.configuration.task_interval == Interval(1767225600 // PRECISION, 24)
        assert task == files.client

    @pytest.mark.parametrize(
        ("value", "why"),
        [
            ("[3600.0, 3600]", "the start must be seconds"),
            ("[3601, 3600]", "multiples of time_precision"),
            ("[3600, 1800]", "multiples of time_precision"),
            ("[3600, 0]", "give a start from 0 and a duration from 1, in seconds"),
            ("[-3600, 3600]", "give a start from 0 and a duration from 1, in seconds"),
            ("[3600, true]", "give a start from 0 and a duration from 1, in seconds"),
            (f"[3600, {(2**64 - 1) * PRECISION}]", "shorten it"),
            ("[2026-01-01T00:00:00, 3600]", "a time with a zone"),
            ('["tomorrow", 3600]', "a time with a zone"),
            ("[3600]", "length 2"),
            ("3600", "expected `array"),
        ],
    )
    def test_c7_what_is_no_interval(
        self, value: str, why: str, files: TaskFiles, tmp_path: Path
    ) -> None:
        """Said with its key and the remedy."""
        message = _refusal(tmp_path, _with(to_toml(files.client), "task_interval", value))
        assert "task_interval: " in message
        assert re.search(why, message)

    def test_every_uint64_of_the_draft_comes_back(self, tmp_path: Path) -> None:
        """From the file and from the TaskConfiguration's bytes; C7: also those of the interval."""
        largest = 2**64 - 1
        vdaf: dict[str, int | str] = {
            "type": "sumvec",
            "length": 2,
            "max_measurement": largest,
            "chunk_length": 8,
        }
        draft = _draft(
            vdaf=vdaf,
            time_precision=largest,
            min_batch_size=largest,
            task_interval=(largest, (largest - 1) * largest),
        )
        made = new_task(draft)
        configuration = made.client.configuration
        assert (configuration.time_precision, configuration.min_batch_size) == (largest, largest)
        assert configuration.task_interval == Interval(1, largest - 1)
        assert TaskConfiguration.decode(configuration.encode()) == configuration
        for path in write_task_files(tmp_path, made):
            assert read_task_file(path).configuration == configuration

    def test_c7_the_command_line_gives_texts(self) -> None:
        """A duration there is a text too; what is no number is refused."""
        made = new_task(_draft(task_interval=("2026-01-01", "86400"))).client.configuration
        assert made.task_interval == Interval(1767225600 // PRECISION, 24)
        with pytest.raises(UsageError, match=r"^task_interval: "):
            new_task(_draft(task_interval=("2026-01-01", "a day")))

    def test_no_interval_no_extension(self) -> None:
        """A task that runs for ever has no extension."""
        assert new_task(_draft()).client.configuration.extensions == ()


class TestRefusals:
    """Each is one line with the file, the key and the remedy."""

    @pytest.mark.parametrize("role", ROLES)
    def test_every_missing_key_is_named(self, role: str, files: TaskFiles, tmp_path: Path) -> None:
        text = to_toml(getattr(files, role))
        keys = set(re.findall(r"^(\w+) = ", text, flags=re.MULTILINE))
        for key in keys - {"task_interval", "verification_key_id", "report_expiry_age"}:
            assert f"{key}: missing" in _refusal(tmp_path, _without(text, key))

    def test_b4_verification_key_id_defaults_to_0(self, files: TaskFiles, tmp_path: Path) -> None:
        path = tmp_path / "t.toml"
        path.write_text(_without(to_toml(files.helper), "verification_key_id"))
        assert read_task_file(path) == files.helper

    @pytest.mark.parametrize(
        ("key", "value", "why"),
        [
            ("role", '"boss"', "invalid enum value"),
            ("task_id", '"AAAA"', "3 bytes; it must have 32"),
            ("task_id", f'"{"A" * 43}="', "not unpadded base64url"),
            ("task_id", "7", "expected `str"),
            ("time_precision", "0", ">= 1"),
            ("min_batch_size", "0", ">= 1"),
            ("time_precision", str(2**64), "at most 2.64-1"),
            ("min_batch_size", str(2**64), "at most 2.64-1"),
            ("report_expiry_age", str(2**63), "<= 9223372036854775807"),
            ("batch_mode", '"time_interval"', "invalid enum value"),
            ("vdaf_verify_key", '"AAAA"', "it must have 32"),
            ("verification_key_id", "256", "<= 255"),
            ("report_expiry_age", "0", ">= 1"),
            ("report_expiry_age", '"always"', "invalid enum value"),
            ("aggregator_auth_token", '"a b"', "visible ASCII"),
            ("aggregator_auth_token", '""', "visible ASCII"),
            ("collector_auth_token", '"é"', "visible ASCII"),
            ("collector_hpke_config", '"AAAA"', "not an encoded HpkeConfig"),
            ("vdaf", '{ type = "median" }', "unknown type `median`; use one of count, sum, "),
            ("vdaf", '{ type = "histogramm" }', r"`histogramm`; did you mean `histogram`\?"),
            ("vdaf", "{ length = 3 }", "without type; use one of count"),
            ("vdaf", '{ type = "histogram", length = 10 }', "without chunk_length"),
            ("vdaf", '{ type = "histogram", length = 0, chunk_length = 1 }', "length"),
            (
                "vdaf",
                '{ type = "histogram", lenght = 10, chunk_length = 3 }',
                r"vdaf: unknown key `lenght`; did you mean `length`\?",
            ),
            ("vdaf", '{ type = "count", length = 1 }', "`length`; count takes no parameters"),
            ("vdaf", '{ type = "sum", bits = 8 }', "unknown key `bits`; sum takes max_measurement"),
            (
                "vdaf",
                f"{{ type = 'histogram', length = {2**63}, chunk_length = 1 }}",
                "length must be a whole number from 1 to",
            ),
            (
                "vdaf",
                f"{{ type = 'sum', max_measurement = {2**64 - 1} }}",
                "max_measurement must be a whole number from 1 to 18446744069414584320",
            ),
            ("vdaf", '{ type = "sum", max_measurement = -1 }', "from 0 to 2.64-1"),
            ("vdaf", '{ type = "sum", max_measurement = "9" }', "from 0 to 2.64-1"),
            ("verify_key", '"AA"', r"unknown key `verify_key`; did you mean `vdaf_verify_key`\?"),
            ("favourite", '"AA"', "unknown key `favourite`; docs/tasks.md explains every key"),
        ],
    )
    def test_a_wrong_value(
        self, key: str, value: str, why: str, files: TaskFiles, tmp_path: Path
    ) -> None:
        message = _refusal(tmp_path, _with(to_toml(files.leader), key, value))
        assert key in message
        assert re.search(why, message)

    def test_a_suite_that_is_not_supported(self, files: TaskFiles, tmp_path: Path) -> None:
        """It would fail when the batch is already collected."""
        config = HpkeConfig(1, 0x0012, 1, 1, b"\x04" * 133)
        text = f'"{b64url_encode(config.encode())}"'
        message = _refusal(tmp_path, _with(to_toml(files.leader), "collector_hpke_config", text))
        assert "collector_hpke_config: KEM 0x0012" in message

    def test_a_public_key_that_is_none(self, files: TaskFiles, tmp_path: Path) -> None:
        """Likewise."""
        config = HpkeConfig(1, 0x0020, 1, 1, b"\x04" * 31)
        text = f'"{b64url_encode(config.encode())}"'
        message = _refusal(tmp_path, _with(to_toml(files.helper), "collector_hpke_config", text))
        assert "collector_hpke_config: its public key is not valid" in message

    def test_a_private_key_of_another_pair(self, files: TaskFiles, tmp_path: Path) -> None:
        """The Collector learns it before the batch is gone."""
        text = f'"{b64url_encode(HpkeKeypair.generate(1, 0x20, 1, 1).private_key)}"'
        message = _refusal(
            tmp_path, _with(to_toml(files.collector), "collector_hpke_private_key", text)
        )
        assert "collector_hpke_private_key: not the key of collector_hpke_config" in message

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no such file; make task files with `dapd task new`"):
            read_task_file(str(tmp_path / "t.toml"))


class TestVdafSpec:
    """The VDAF of the command line."""

    @pytest.mark.parametrize(
        ("text", "table"),
        [
            ("count", {"type": "count"}),
            ("sum:max_measurement=255", {"type": "sum", "max_measurement": 255}),
            ("histogram: length=10, chunk_length=4", HISTOGRAM),
        ],
    )
    def test_spec(self, text: str, table: dict[str, int | str]) -> None:
        assert parse_vdaf_spec(text) == table

    @pytest.mark.parametrize(
        "text", ["sum:255", "sum:max_measurement", "sum:a=x", "sum:a=-1", "sum:=3", "sum:a=1,a=2"]
    )
    def test_what_is_no_spec(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"^vdaf: "):
            parse_vdaf_spec(text)

    @given(st.text(max_size=30))
    def test_any_text_is_a_spec_or_a_usage_error(self, text: str) -> None:
        """Never a traceback."""
        try:
            new_task(_draft(vdaf=parse_vdaf_spec(text)))
        except UsageError as error:
            assert "vdaf: " in str(error)  # noqa: PT017 - any other exception fails the test


class TestExpiryAge:
    """How long reports are kept: local to an Aggregator, but the Helper must not be the first."""

    @pytest.mark.parametrize(
        ("chosen", "leaders", "helpers"),
        [
            (None, 2_419_200, 2_505_600),
            (3600, 3600, 90_000),
            ("never", "never", "never"),
            (2**63 - 1, 2**63 - 1, 2**63 - 1),
        ],
    )
    def test_d6_the_helper_keeps_reports_a_day_longer(
        self, chosen: Any, leaders: Any, helpers: Any
    ) -> None:
        """D6: else what the Leader still counts, the Helper drops."""
        made = new_task(_draft(report_expiry_age=chosen))
        assert (made.leader.report_expiry_age, made.helper.report_expiry_age) == (leaders, helpers)

    @pytest.mark.parametrize(
        ("role", "given", "leaders"),
        [("leader", 7200, 7200), ("helper", 90_000, 3600), ("helper", "never", "never")],
    )
    def test_a_task_made_from_an_aggregators_file_keeps_its_age(
        self, role: str, given: Any, leaders: Any
    ) -> None:
        """What a file of ours says comes out of `dapd task new --from` again."""
        made = new_task(_draft(role=role, report_expiry_age=given))
        assert made.leader.report_expiry_age == leaders

    def test_a_helpers_age_that_leaves_its_leader_none_is_refused(self) -> None:
        """A day longer than nothing."""
        with pytest.raises(UsageError, match=r"^report_expiry_age: is 86400, .* above 86400"):
            new_task(_draft(role="helper", report_expiry_age=86_400))

    def test_an_aggregator_takes_the_age_of_its_file(
        self, files: TaskFiles, tmp_path: Path
    ) -> None:
        """Else its configuration's default; other local settings are not in the file."""
        defaults = TaskSettings("sync", 7, 99)
        path = tmp_path / "t.toml"
        for line, age in (
            ("", 99),
            ("report_expiry_age = 5\n", 5),
            ('report_expiry_age = "never"\n', None),
        ):
            path.write_text(_without(to_toml(files.helper), "report_expiry_age") + line)
            task = read_task_file(path)
            assert isinstance(task, HelperTask)
            assert local_settings(task, defaults) == TaskSettings("sync", 7, age)


class TestAggregatorTask:
    """What an Aggregator stores of a task."""

    def test_i9_the_leader_sends_one_token_and_checks_the_other(self, files: TaskFiles) -> None:
        """Inbound tokens are known as SHA-256 only."""
        task = aggregator_task(files.leader, TaskSettings())
        assert task.role is Role.LEADER
        assert task.aggregator_token == files.leader.aggregator_auth_token
        assert task.inbound_token_hashes == (hash_token(files.leader.collector_auth_token),)
        assert task.configuration == files.leader.configuration

    def test_i9_the_helper_checks_its_token(self, files: TaskFiles) -> None:
        """It sends none."""
        task = aggregator_task(files.helper, TaskSettings(helper_mode="async"))
        assert task.role is Role.HELPER
        assert task.aggregator_token is None
        assert task.inbound_token_hashes == (hash_token(files.helper.aggregator_auth_token),)
        assert task.settings.helper_mode == "async"


@pytest.mark.parametrize(
    "kind", [LeaderTask, HelperTask, CollectorTask, ClientTask], ids=lambda kind: kind.__name__
)
def test_the_examples_of_the_documentation_are_one_task(
    kind: type[TaskFile], tmp_path: Path
) -> None:
    """docs/tasks.md shows four files that read, of one and the same task."""
    tasks: list[TaskFile] = []
    for number, text in enumerate(re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)):
        if text.startswith("role"):
            path = tmp_path / f"{number}.toml"
            path.write_text(text)
            tasks.append(read_task_file(path))
    assert [type(task) for task in tasks].count(kind) == 1
    assert len({(task.task_id, task.configuration.encode()) for task in tasks}) == 1


def test_leader_selected() -> None:
    """The other batch mode."""
    task = new_task(_draft(batch_mode="leader-selected")).client
    assert task.configuration.batch_mode is BatchMode.LEADER_SELECTED


@pytest.mark.parametrize("vdaf", VDAFS)
def test_every_vdaf_can_be_written(vdaf: dict[str, int | str], tmp_path: Path) -> None:
    """With its chunk_length where it has one."""
    task = new_task(_draft(vdaf=vdaf)).client
    write_task_file(tmp_path / "t.toml", task)
    assert read_task_file(tmp_path / "t.toml") == task
