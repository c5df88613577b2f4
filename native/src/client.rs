//! The Client's sharding and sealing, and the Collector's unsharding (sections "Client Behavior"
//! of "Uploading Reports", "Collection Job Finalization").

use prio::codec::Encode;
use prio::vdaf::{Aggregatable, Aggregator, Client, Collector};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::hpke::{HpkeConfigTuple, HpkeRecipient};
use crate::report::{
    encode_extensions, input_share_aad, put32, HpkeCiphertext, PlaintextInputShare, ReportId,
    ReportMetadata, Wire, HELPER_INFO, LEADER_INFO,
};
use crate::totals::UPLOADS;
use crate::vdaf::{
    context, decode_aggregate, dispatch, encode, fixed, Aggregate, AnyVdaf, Kind, Vdaf, P3,
};

/// (public share, Leader's input share, Helper's input share), encoded.
type Shards = (Vec<u8>, Vec<u8>, Vec<u8>);
type Measurements = Vec<Vec<u128>>;
type Column = Vec<Vec<u8>>;

fn report_ids(ids: &[u8], expected: usize) -> Result<&[ReportId]> {
    match ids.as_chunks::<16>() {
        (ids, []) if ids.len() == expected => Ok(ids),
        _ => Err(Error::value(format!("report_ids must be {expected} x 16 bytes"))),
    }
}

fn extract<T: Kind>(_: &P3<T>, measurements: &Bound<'_, PyAny>) -> PyResult<Measurements> {
    let mut out = Vec::new();
    for (place, measurement) in measurements.try_iter()?.enumerate() {
        let measurement = measurement?;
        let (raw, expected) = if T::VECTOR {
            (measurement.extract::<Vec<u128>>(), "a list of whole numbers from 0")
        } else {
            (measurement.extract::<u128>().map(|value| vec![value]), "a whole number from 0")
        };
        let wrong = |_| Error::value(format!("measurement {place} must be {expected}"));
        out.push(raw.map_err(wrong)?);
    }
    Ok(out)
}

fn shard_all<T: Kind>(
    vdaf: &P3<T>,
    context: &[u8],
    measurements: Measurements,
    ids: &[ReportId],
) -> Result<Vec<Shards>> {
    let one = |(place, (raw, id)): (usize, (Vec<u128>, &ReportId))| {
        let wrong = |reason: String| Error::value(format!("measurement {place} {reason}"));
        let measurement =
            T::measurement(raw, vdaf.output_len()).map_err(|reason| wrong(reason.into()))?;
        let refused = |error: &dyn std::fmt::Display| wrong(format!("does not encode: {error}"));
        let (public, inputs) =
            vdaf.shard(context, &measurement, id).map_err(|error| refused(&error))?;
        let encoded = |share: &dyn Fn() -> Result<Vec<u8>, prio::codec::CodecError>| {
            share().map_err(|error| refused(&error))
        };
        Ok((
            encoded(&|| public.get_encoded())?,
            encoded(&|| inputs[0].get_encoded())?,
            encoded(&|| inputs[1].get_encoded())?,
        ))
    };
    let pairs: Vec<_> = measurements.into_iter().zip(ids).enumerate().collect();
    UPLOADS.install(|| pairs.into_par_iter().map(one).collect())
}

#[pyfunction]
pub fn shard(
    py: Python<'_>,
    vdaf: &Vdaf,
    task_id: &[u8],
    measurements: &Bound<'_, PyAny>,
    report_ids: &[u8],
) -> PyResult<(Column, Column, Column)> {
    let context = context(&fixed::<32>("task_id", task_id)?);
    dispatch!(&*vdaf.inner, vdaf => {
        let measurements = extract(vdaf, measurements)?;
        let shards = py.detach(|| {
            let ids = self::report_ids(report_ids, measurements.len())?;
            shard_all(vdaf, &context, measurements, ids)
        })?;
        let (mut public, mut leader, mut helper) = (Vec::new(), Vec::new(), Vec::new());
        for (a, b, c) in shards {
            public.push(a);
            leader.push(b);
            helper.push(c);
        }
        Ok((public, leader, helper))
    })
}

/// An Aggregator that reports are sealed to.
struct Recipient {
    hpke: HpkeRecipient,
    info: &'static [u8],
    private_extensions: Vec<u8>,
    shares: Vec<PyBackedBytes>,
}

impl Recipient {
    /// Seal the input share of `row`: an encoded `HpkeCiphertext`.
    fn seal(&self, row: usize, aad: &[u8]) -> Result<Vec<u8>> {
        let payload = &*self.shares[row];
        if payload.is_empty() {
            return Err(Error::value(format!("input share {row} is empty")));
        }
        let private_extensions = &self.private_extensions;
        let plaintext = PlaintextInputShare { private_extensions, payload }.encode();
        let (enc, payload) = self.hpke.seal(self.info, aad, &plaintext)?;
        let config_id = self.hpke.config_id;
        Ok(HpkeCiphertext { config_id, enc: &enc, payload: &payload }.encode())
    }
}

/// The inputs that all reports of a call have in common.
struct Sealing {
    task_id: [u8; 32],
    task_configuration: Vec<u8>,
    public_extensions: Vec<u8>,
    leader: Recipient,
    helper: Recipient,
}

impl Sealing {
    /// Build one encoded `Report`.
    fn report(&self, row: usize, id: &ReportId, time: u64, public_share: &[u8]) -> Result<Vec<u8>> {
        let public_extensions = &self.public_extensions;
        let metadata = ReportMetadata { report_id: id, time, public_extensions };
        let aad = input_share_aad(&self.task_id, &self.task_configuration, &metadata, public_share);
        let mut report = metadata.encode();
        put32(&mut report, public_share);
        report.extend(self.leader.seal(row, &aad)?);
        report.extend(self.helper.seal(row, &aad)?);
        Ok(report)
    }
}

#[pyfunction]
#[pyo3(signature = (
    task_id, task_configuration, leader, helper, report_ids, times, public_shares,
    leader_input_shares, helper_input_shares, *,
    public_extensions = Vec::new(), leader_extensions = Vec::new(), helper_extensions = Vec::new(),
))]
#[allow(clippy::too_many_arguments)] // the interface of `_native.pyi`
pub fn seal_reports(
    py: Python<'_>,
    task_id: &[u8],
    task_configuration: &[u8],
    leader: HpkeConfigTuple,
    helper: HpkeConfigTuple,
    report_ids: &[u8],
    times: Vec<u64>,
    public_shares: Vec<PyBackedBytes>,
    leader_input_shares: Vec<PyBackedBytes>,
    helper_input_shares: Vec<PyBackedBytes>,
    public_extensions: Vec<(u16, Vec<u8>)>,
    leader_extensions: Vec<(u16, Vec<u8>)>,
    helper_extensions: Vec<(u16, Vec<u8>)>,
) -> Result<Vec<Vec<u8>>> {
    let ids = self::report_ids(report_ids, times.len())?;
    let columns = [&public_shares, &leader_input_shares, &helper_input_shares];
    if columns.iter().any(|column| column.len() != ids.len()) {
        return Err(Error::value("times, ids and shares must be of the same number of reports"));
    }
    let sealing = Sealing {
        task_id: fixed("task_id", task_id)?,
        task_configuration: task_configuration.to_vec(),
        public_extensions: encode_extensions(&public_extensions)?,
        leader: Recipient {
            hpke: HpkeRecipient::new(&leader)?,
            info: LEADER_INFO,
            private_extensions: encode_extensions(&leader_extensions)?,
            shares: leader_input_shares,
        },
        helper: Recipient {
            hpke: HpkeRecipient::new(&helper)?,
            info: HELPER_INFO,
            private_extensions: encode_extensions(&helper_extensions)?,
            shares: helper_input_shares,
        },
    };
    py.detach(|| {
        UPLOADS.install(|| {
            (0..ids.len())
                .into_par_iter()
                .map(|row| sealing.report(row, &ids[row], times[row], &public_shares[row]))
                .collect()
        })
    })
}

fn add_share<T: Kind>(vdaf: &P3<T>, sum: &mut Aggregate<T>, share: &[u8]) -> Result<()> {
    let wrong =
        || Error::value(format!("an aggregate share of {} bytes is not of this VDAF", share.len()));
    let share = decode_aggregate(vdaf, share).ok_or_else(wrong)?;
    sum.merge(&share).map_err(|_| wrong())
}

#[pyfunction]
pub fn merge(py: Python<'_>, vdaf: &Vdaf, shares: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    dispatch!(&*vdaf.inner, vdaf => {
        let mut sum = vdaf.aggregate_init(&());
        for share in shares.try_iter()? {
            let share: PyBackedBytes = share?.extract()?;
            py.detach(|| add_share(vdaf, &mut sum, &share))?;
        }
        Ok(py.detach(|| encode(&sum)))
    })
}

fn unshard_with<T: Kind>(vdaf: &P3<T>, shares: [&[u8]; 2], count: usize) -> Result<Vec<u128>> {
    let mut sum = vdaf.aggregate_init(&());
    for share in shares {
        add_share(vdaf, &mut sum, share)?;
    }
    vdaf.unshard(&(), [sum], count)
        .map(T::result)
        .map_err(|error| Error::value(format!("aggregate shares give no result: {error}")))
}

/// An aggregate result: a number or a list of numbers, depending on the VDAF.
#[derive(IntoPyObject)]
pub enum AggregateResult {
    Number(u128),
    List(Vec<u128>),
}

#[pyfunction]
pub fn unshard(
    py: Python<'_>,
    vdaf: &Vdaf,
    leader_share: &[u8],
    helper_share: &[u8],
    count: usize,
) -> Result<AggregateResult> {
    let shares = [leader_share, helper_share];
    let result =
        py.detach(|| dispatch!(&*vdaf.inner, vdaf => unshard_with(vdaf, shares, count)))?;
    let list = matches!(
        *vdaf.inner,
        AnyVdaf::SumVec(_) | AnyVdaf::Histogram(_) | AnyVdaf::MultihotCountVec(_)
    );
    Ok(if list { AggregateResult::List(result) } else { AggregateResult::Number(result[0]) })
}
