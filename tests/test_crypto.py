"""Keys at work: what Python sees of HPKE, sealing, tokens, and the replay index."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapd import crypto
from dapd._native import ReplayIndex, ReportRules, parse_upload_errors
from dapd.errors import DecodeError

SUITES = [(0x0020, 0x0001, 0x0001), (0x0020, 0x0001, 0x0003), (0x0010, 0x0001, 0x0001)]
OLD, NEW = bytes([1]) * 32, bytes([2]) * 32


@pytest.mark.parametrize("suite", SUITES)
def test_what_is_sealed_to_a_keypair_opens_with_it(suite: tuple[int, int, int]) -> None:
    """Also after the key pair went through its parts, as the datastore keeps them."""
    generated = crypto.HpkeKeypair.generate(5, *suite)
    keypair = crypto.HpkeKeypair(*generated.config, generated.private_key)
    assert crypto.hpke_supported(*suite)
    enc, payload = crypto.hpke_seal(generated.config, b"info", b"aad", b"text")
    assert keypair.open(b"info", b"aad", enc, payload) == b"text"
    with pytest.raises(ValueError, match="does not open"):
        keypair.open(b"info", b"other", enc, payload)


def test_an_unsupported_suite_is_named() -> None:
    """P-521 is no suite of ours."""
    assert not crypto.hpke_supported(0x0012, 0x0003, 0x0002)
    with pytest.raises(ValueError, match="KEM 0x0012, KDF 0x0003, AEAD 0x0002"):
        crypto.HpkeKeypair.generate(1, 0x0012, 0x0003, 0x0002)


def test_a_keypair_whose_halves_do_not_match_is_refused() -> None:
    """The message says what is wrong, and holds no key."""
    one, other = (crypto.HpkeKeypair.generate(1, *SUITES[0]) for _ in range(2))
    with pytest.raises(ValueError, match="does not belong to the private key"):
        crypto.HpkeKeypair(*one.config, other.private_key)


def test_a_keyring_knows_its_config_ids() -> None:
    """Each id once: a repeated one would make the other key unreachable."""
    keypairs = [crypto.HpkeKeypair.generate(config_id, *SUITES[0]) for config_id in (9, 0, 255)]
    assert crypto.Keyring(keypairs).config_ids == bytes([0, 9, 255])
    assert crypto.Keyring([]).config_ids == b""
    with pytest.raises(ValueError, match="config id 9 occurs twice"):
        crypto.Keyring([keypairs[0], keypairs[0]])


def test_f2_sealed_values_carry_their_keys_id() -> None:
    """The first key seals, all open, and a missing key is named."""
    sealed = crypto.make_sealer([OLD]).seal(b"aad", b"secret")
    assert crypto.seal_key_id_of(sealed) == crypto.sealing_key_id(OLD)
    assert crypto.sealing_key_id(OLD) == hashlib.sha256(OLD).digest()[:8]
    both = crypto.make_sealer([NEW, OLD])
    assert both.open(b"aad", sealed) == b"secret"
    assert crypto.seal_key_id_of(both.seal(b"aad", b"")) == crypto.sealing_key_id(NEW)
    with pytest.raises(ValueError, match=crypto.sealing_key_id(OLD).hex()):
        crypto.make_sealer([NEW]).open(b"aad", sealed)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [([], "at least one"), ([OLD, OLD], "occurs twice"), ([b"short"], "32 bytes")],
)
def test_bad_sealing_keys_are_refused(keys: list[bytes], reason: str) -> None:
    """A Sealer has keys of 32 bytes, each once."""
    with pytest.raises(ValueError, match=reason):
        crypto.make_sealer(keys)


@given(st.binary(max_size=80))
def test_random_bytes_are_no_sealed_value(data: bytes) -> None:
    """They are a ValueError, whatever they are."""
    with pytest.raises(ValueError, match=r"sealed value|sealing key"):
        crypto.make_sealer([OLD]).open(b"", data)


def test_i9_a_value_opens_only_in_its_own_place() -> None:
    """Every column has an AAD of its own for the same names."""
    task_id, name = bytes(32), bytes(16)
    aads = [
        crypto.verify_key_aad(task_id),
        crypto.token_aad(task_id),
        crypto.hpke_private_key_aad(0, task_id),
        crypto.collection_share_aad(task_id, name),
        crypto.chunk_row_aad(task_id, name),
        crypto.leader_state_aad(task_id, name),
        crypto.batch_share_aad(task_id, name, b""),
    ]
    assert len(set(aads)) == len(aads)
    sealer = crypto.make_sealer([OLD])
    sealed = sealer.seal(aads[0], b"secret")
    for aad in aads[1:]:
        with pytest.raises(ValueError, match="tampered"):
            sealer.open(aad, sealed)


def test_a9_a_token_matches_its_own_hash_alone() -> None:
    """Tokens are stored as SHA-256 and may be any text."""
    stored = crypto.hash_token("tökén")
    assert stored == hashlib.sha256("tökén".encode()).digest()
    assert crypto.token_matches("tökén", [stored])
    assert not crypto.token_matches("tökén ", [stored])
    assert not crypto.token_matches("tökén", [b""])
    assert not crypto.token_matches("tökén", [])


def test_d3_f4_the_replay_index_admits_once_and_rolls_back() -> None:
    """One id twice in a call is known the second time; rollback undoes the open transaction."""
    one, two = bytes([1]) * 16, bytes([2]) * 16
    index = ReplayIndex()
    index.load(1, one)
    assert index.admit(1, one + two + two) == b"\x01\x00\x01"
    index.rollback()
    assert index.peek(1, one + two) == b"\x01\x00"
    assert index.admit(1, two) == b"\x00"
    index.commit()
    index.rollback()
    assert (index.peek(1, two), index.peek(2, two), len(index)) == (b"\x01", b"\x00", 2)
    index.forget(1, one)
    assert index.peek(1, one) == b"\x00"
    with pytest.raises(ValueError, match="16 bytes"):
        index.peek(1, b"short")


def test_the_replay_index_may_be_peeked_at_while_another_thread_admits() -> None:
    """Neither a deadlock with the GIL nor a lost id."""
    index = ReplayIndex()
    ids = b"".join(n.to_bytes(16, "big") for n in range(2000))
    with ThreadPoolExecutor(2) as pool:
        peeks = [pool.submit(index.peek, 1, ids) for _ in range(20)]
        admits = [index.admit(1, ids[at : at + 1600]) for at in range(0, len(ids), 1600)]
        assert b"".join(admits) == bytes(2000)
        assert all(len(peek.result()) == 2000 for peek in peeks)
    assert index.peek(1, ids) == b"\x01" * 2000


def test_upload_errors_parse_and_unknown_codes_are_numbers() -> None:
    """ReportError's registry is open; a cut body is a DecodeError that says where."""
    first, second = bytes(16), bytes([7]) * 16
    assert parse_upload_errors(first + b"\x02" + second + b"\xc8") == [(first, 2), (second, 200)]
    assert parse_upload_errors(b"") == []
    with pytest.raises(DecodeError) as caught:
        parse_upload_errors(first + b"\x02" + second)
    assert (caught.value.offset, caught.value.reason) == (
        33,
        "report error needs 1 bytes, 0 are left",
    )


def test_report_rules_take_the_whole_range_of_times() -> None:
    """Times are uint64; known extensions are optional."""
    last = 2**64 - 1
    ReportRules(too_early_after=last, task_start=0, task_end=last, expired_before=0)
