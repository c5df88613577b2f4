//! The report-level structures of DAP-18, as views of their bytes.
//!
//! Python parses the message-level structures, except for the lists of these. Unknown values of
//! `ReportError` are accepted, those of `VerifyRespType` are not.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::codec::put16;
pub use crate::codec::{put32, Decoded, Reader, Wire};
use crate::error::{DecodeError, Error, Result};

/// `ReportError` (section "Basic Type Definitions"). 0, reserved there, means "fine" in a column.
pub mod report_error {
    pub const FINE: u8 = 0;
    pub const BATCH_COLLECTED: u8 = 1;
    pub const REPORT_REPLAYED: u8 = 2;
    pub const REPORT_DROPPED: u8 = 3;
    pub const HPKE_UNKNOWN_CONFIG_ID: u8 = 4;
    pub const HPKE_DECRYPT_ERROR: u8 = 5;
    pub const VDAF_VERIFY_ERROR: u8 = 6;
    pub const TASK_EXPIRED: u8 = 7;
    pub const INVALID_MESSAGE: u8 = 8;
    pub const REPORT_TOO_EARLY: u8 = 9;
    pub const TASK_NOT_STARTED: u8 = 10;
    pub const OUTDATED_CONFIG: u8 = 11;
}

/// HPKE's `info` for an input share from the Client (0x01) to the Leader (0x02).
pub const LEADER_INFO: &[u8] = b"dap-18 input share\x01\x02";
/// HPKE's `info` for an input share from the Client (0x01) to the Helper (0x03).
pub const HELPER_INFO: &[u8] = b"dap-18 input share\x01\x03";

pub type ReportId = [u8; 16];

/// `Extension`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension<'a> {
    pub extension_type: u16,
    pub extension_data: &'a [u8],
}

impl<'a> Wire<'a> for Extension<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self {
            extension_type: reader.u16("extension_type")?,
            extension_data: reader.opaque16(0, "extension_data")?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.extension_type.to_be_bytes());
        put16(out, self.extension_data);
    }
}

/// Encode the items of an extension list. Fails with `ValueError` beyond 2^16-1 bytes.
pub fn encode_extensions(extensions: &[(u16, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for (extension_type, extension_data) in extensions {
        if out.len() + 4 + extension_data.len() > usize::from(u16::MAX) {
            return Err(Error::value("extensions must fit in 65535 bytes"));
        }
        Extension { extension_type: *extension_type, extension_data }.write(&mut out);
    }
    Ok(out)
}

/// `HpkeCiphertext`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HpkeCiphertext<'a> {
    pub config_id: u8,
    pub enc: &'a [u8],
    pub payload: &'a [u8],
}

impl<'a> Wire<'a> for HpkeCiphertext<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self {
            config_id: reader.u8("HPKE config id")?,
            enc: reader.opaque16(1, "HPKE enc")?,
            payload: reader.opaque32(1, "HPKE payload")?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.config_id);
        put16(out, self.enc);
        put32(out, self.payload);
    }
}

/// `ReportMetadata`; `public_extensions` are the raw items, each of which parses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportMetadata<'a> {
    pub report_id: &'a ReportId,
    pub time: u64,
    pub public_extensions: &'a [u8],
}

impl<'a> Wire<'a> for ReportMetadata<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self {
            report_id: reader.array("report_id")?,
            time: reader.u64("time")?,
            public_extensions: reader.raw_list16::<Extension<'_>>("public_extensions")?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.report_id);
        out.extend_from_slice(&self.time.to_be_bytes());
        put16(out, self.public_extensions);
    }
}

/// `Report`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report<'a> {
    pub metadata: ReportMetadata<'a>,
    pub public_share: &'a [u8],
    pub leader_encrypted_input_share: HpkeCiphertext<'a>,
    pub helper_encrypted_input_share: HpkeCiphertext<'a>,
}

impl<'a> Wire<'a> for Report<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self {
            metadata: ReportMetadata::read(reader)?,
            public_share: reader.opaque32(0, "public_share")?,
            leader_encrypted_input_share: HpkeCiphertext::read(reader)?,
            helper_encrypted_input_share: HpkeCiphertext::read(reader)?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.metadata.write(out);
        put32(out, self.public_share);
        self.leader_encrypted_input_share.write(out);
        self.helper_encrypted_input_share.write(out);
    }
}

/// `ReportShare`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportShare<'a> {
    pub metadata: ReportMetadata<'a>,
    pub public_share: &'a [u8],
    pub encrypted_input_share: HpkeCiphertext<'a>,
}

impl<'a> Wire<'a> for ReportShare<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self {
            metadata: ReportMetadata::read(reader)?,
            public_share: reader.opaque32(0, "public_share")?,
            encrypted_input_share: HpkeCiphertext::read(reader)?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.metadata.write(out);
        put32(out, self.public_share);
        self.encrypted_input_share.write(out);
    }
}

/// `VerifyInit`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyInit<'a> {
    pub report_share: ReportShare<'a>,
    pub payload: &'a [u8],
}

impl<'a> Wire<'a> for VerifyInit<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self {
            report_share: ReportShare::read(reader)?,
            payload: reader.opaque32(1, "VerifyInit payload")?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.report_share.write(out);
        put32(out, self.payload);
    }
}

/// A `VerifyResp`'s type and the value that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    Continue(&'a [u8]),
    Finish,
    Reject(u8),
}

/// `VerifyResp`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyResp<'a> {
    pub report_id: &'a ReportId,
    pub verdict: Verdict<'a>,
}

impl<'a> Wire<'a> for VerifyResp<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        let report_id = reader.array("report_id")?;
        let offset = reader.offset();
        let verdict = match reader.u8("verify_resp_type")? {
            0 => Verdict::Continue(reader.opaque32(1, "VerifyResp payload")?),
            1 => Verdict::Finish,
            2 => Verdict::Reject(reader.u8("report_error")?),
            other => {
                let reason = format!("unknown verify_resp_type {other}");
                return Err(DecodeError::new(offset, reason));
            }
        };
        Ok(Self { report_id, verdict })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.report_id);
        match self.verdict {
            Verdict::Continue(payload) => {
                out.push(0);
                put32(out, payload);
            }
            Verdict::Finish => out.push(1),
            Verdict::Reject(error) => out.extend_from_slice(&[2, error]),
        }
    }
}

/// `PlaintextInputShare`; `private_extensions` are the raw items, each of which parses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaintextInputShare<'a> {
    pub private_extensions: &'a [u8],
    pub payload: &'a [u8],
}

impl<'a> Wire<'a> for PlaintextInputShare<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self {
            private_extensions: reader.raw_list16::<Extension<'_>>("private_extensions")?,
            payload: reader.opaque32(1, "input share payload")?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        put16(out, self.private_extensions);
        put32(out, self.payload);
    }
}

/// `ReportUploadStatus`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportUploadStatus<'a> {
    pub report_id: &'a ReportId,
    pub error: u8,
}

impl<'a> Wire<'a> for ReportUploadStatus<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self { report_id: reader.array("report id")?, error: reader.u8("report error")? })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.report_id);
        out.push(self.error);
    }
}

/// Encode `InputShareAad`; `task_configuration` is encoded already.
pub fn input_share_aad(
    task_id: &[u8; 32],
    task_configuration: &[u8],
    metadata: &ReportMetadata<'_>,
    public_share: &[u8],
) -> Vec<u8> {
    let mut out = [task_id, task_configuration].concat();
    metadata.write(&mut out);
    put32(&mut out, public_share);
    out
}

/// Parse `UploadErrors` into (report id, ReportError) pairs.
#[pyfunction]
pub fn parse_upload_errors<'py>(
    py: Python<'py>,
    body: &[u8],
) -> Result<Vec<(Bound<'py, PyBytes>, u8)>> {
    let statuses: Vec<ReportUploadStatus<'_>> = Reader::new(body, 0).list()?;
    let row = |status: ReportUploadStatus<'_>| (PyBytes::new(py, status.report_id), status.error);
    Ok(statuses.into_iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Random bytes for a structure's fields, each shorter than 40 bytes.
    #[derive(Clone, Debug)]
    struct Seed {
        id: ReportId,
        time: u64,
        byte: u8,
        extensions: Vec<u8>,
        fields: [Vec<u8>; 6],
    }

    fn seed() -> impl Strategy<Value = Seed> {
        let extensions = vec((any::<u16>(), vec(any::<u8>(), 0..9)), 0..4)
            .prop_map(|extensions| encode_extensions(&extensions).unwrap());
        let field = || vec(any::<u8>(), 1..40);
        let fields = [field(), field(), field(), field(), field(), field()];
        (any::<ReportId>(), any::<u64>(), any::<u8>(), extensions, fields).prop_map(
            |(id, time, byte, extensions, fields)| Seed { id, time, byte, extensions, fields },
        )
    }

    impl Seed {
        fn ciphertext(&self, at: usize) -> HpkeCiphertext<'_> {
            let (enc, payload) = (&self.fields[at], &self.fields[at + 1]);
            HpkeCiphertext { config_id: self.byte, enc, payload }
        }

        fn metadata(&self) -> ReportMetadata<'_> {
            ReportMetadata {
                report_id: &self.id,
                time: self.time,
                public_extensions: &self.extensions,
            }
        }

        fn report(&self) -> Report<'_> {
            Report {
                metadata: self.metadata(),
                public_share: &self.fields[0][1..],
                leader_encrypted_input_share: self.ciphertext(1),
                helper_encrypted_input_share: self.ciphertext(3),
            }
        }

        fn verify_init(&self) -> VerifyInit<'_> {
            let report_share = ReportShare {
                metadata: self.metadata(),
                public_share: &self.fields[0][1..],
                encrypted_input_share: self.ciphertext(1),
            };
            VerifyInit { report_share, payload: &self.fields[5] }
        }

        fn plaintext(&self) -> PlaintextInputShare<'_> {
            PlaintextInputShare { private_extensions: &self.extensions, payload: &self.fields[0] }
        }

        fn verify_resps(&self) -> [VerifyResp<'_>; 3] {
            let verdicts =
                [Verdict::Continue(&self.fields[0]), Verdict::Finish, Verdict::Reject(self.byte)];
            verdicts.map(|verdict| VerifyResp { report_id: &self.id, verdict })
        }
    }

    /// Check that the encoding parses back, alone and in a list, and that no shorter or longer
    /// input parses.
    macro_rules! round_trip {
        ($kind:ident, $value:expr) => {
            let encoded = $value.encode();
            prop_assert_eq!(&$kind::decode(&encoded).unwrap(), &$value);
            let twice = encoded.repeat(2);
            let list: Vec<$kind> = Reader::new(&twice, 0).list().unwrap();
            prop_assert_eq!(list, [$value, $value]);
            let tail: Vec<$kind> = Reader::new(&twice, encoded.len()).list().unwrap();
            prop_assert_eq!(tail, [$value]);
            let trailing = DecodeError::new(encoded.len(), "trailing bytes");
            prop_assert_eq!($kind::decode(&twice).unwrap_err(), trailing);
            for len in 0..encoded.len() {
                let error = $kind::decode(&encoded[..len]).unwrap_err();
                prop_assert!(error.offset <= len);
            }
        };
    }

    /// Check that anything that decodes encodes to the same bytes.
    macro_rules! same_bytes {
        ($data:expr, $($kind:ident)*) => {$(
            if let Ok(value) = $kind::decode($data) {
                prop_assert_eq!(&value.encode(), $data);
            }
        )*};
    }

    proptest! {
        #[test]
        fn what_is_built_parses_back_equal(seed in seed()) {
            round_trip!(Report, seed.report());
            round_trip!(VerifyInit, seed.verify_init());
            round_trip!(PlaintextInputShare, seed.plaintext());
            let status = ReportUploadStatus { report_id: &seed.id, error: seed.byte };
            round_trip!(ReportUploadStatus, status.clone());
            for verify_resp in seed.verify_resps() {
                round_trip!(VerifyResp, verify_resp.clone());
            }
        }

        #[test]
        fn random_and_mutated_bytes_never_panic(
            seed in seed(),
            random in vec(any::<u8>(), 0..200),
            at in any::<proptest::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut built = vec![seed.report().encode(), seed.verify_init().encode()];
            built.push(seed.plaintext().encode());
            built.extend(seed.verify_resps().map(|verify_resp| verify_resp.encode()));
            for data in &mut built {
                let at = at.index(data.len());
                data[at] = byte;
            }
            built.push(random);
            for data in &built {
                same_bytes!(data, Report VerifyInit PlaintextInputShare VerifyResp);
                same_bytes!(data, ReportUploadStatus Extension HpkeCiphertext ReportMetadata);
            }
        }
    }

    #[test]
    fn errors_say_where_and_what() {
        let reason = |error: DecodeError| error.to_string();
        let short = Reader::new(&[0, 1, 2], 1).array::<8>("time").unwrap_err();
        assert_eq!(reason(short), "time needs 8 bytes, 2 are left at byte 1");
        let plaintext = PlaintextInputShare::decode(&[0, 0, 0, 0, 0, 0]).unwrap_err();
        assert_eq!(reason(plaintext), "input share payload is empty at byte 6");
        let extensions = PlaintextInputShare::decode(&[0, 3, 0, 1, 0, 0, 0, 0, 1, 9]).unwrap_err();
        assert_eq!(reason(extensions), "extension_data needs 2 bytes, 1 are left at byte 4");
        let ciphertext = HpkeCiphertext::decode(&[1, 0, 0, 0, 0, 0, 1, 9]).unwrap_err();
        assert_eq!(reason(ciphertext), "HPKE enc is empty at byte 3");
        let closed = VerifyResp::decode(&[&[7; 16][..], &[3]].concat()).unwrap_err();
        assert_eq!(reason(closed), "unknown verify_resp_type 3 at byte 16");
    }

    #[test]
    fn report_errors_are_open_numbers() {
        let resp = VerifyResp { report_id: &[7; 16], verdict: Verdict::Reject(200) };
        assert_eq!(VerifyResp::decode(&resp.encode()).unwrap(), resp);
    }

    #[test]
    fn the_aad_is_the_struct_of_the_draft() {
        let metadata = ReportMetadata { report_id: &[1; 16], time: 2, public_extensions: &[] };
        let aad = input_share_aad(&[3; 32], b"config", &metadata, b"share");
        let time_on = b"\0\0\0\0\0\0\0\x02\0\0\0\0\0\x05share";
        assert_eq!(aad, [&[3; 32], &b"config"[..], &[1; 16], time_on].concat());
    }
}
