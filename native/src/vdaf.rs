//! Prio3 for two aggregators, and the parameters that a task adds to it.
//!
//! The five kinds are one enum. `dispatch!` matches on it once per call; everything else is generic
//! over the circuit. `prio` implements the ping-pong topology of the VDAF draft (section 5.7.1).
//! This module knows neither threads nor DAP's messages.

use std::collections::BTreeMap;
use std::sync::Arc;

use prio::codec::{Decode, Encode, ParameterizedDecode};
use prio::field::{Field128, Field64, FieldElement, FieldElementWithInteger};
use prio::flp::gadgets::{Mul, ParallelSum};
use prio::flp::types::{Count, Histogram, MultihotCountVec, Sum, SumVec};
use prio::flp::{Flp, Type};
use prio::topology::ping_pong::{PingPongMessage, PingPongState, PingPongTopology};
use prio::vdaf::prio3::{Prio3, Prio3InputShare, Prio3PublicShare, Prio3VerifyState};
use prio::vdaf::xof::XofTurboShake128;
use prio::vdaf::{Aggregatable, AggregateShare, OutputShare};
use pyo3::prelude::*;
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::report::{report_error, ReportId};

/// The most field elements of an encoded measurement: an input share is an `opaque<1..2^32-1>`.
const MAX_ELEMENTS: u128 = (1 << 28) - 1;
/// Padding is harmless, but a gadget's memory grows with its chunk.
const MAX_PADDED_CHUNK: u128 = 1 << 16;

pub type P3<T> = Prio3<T, XofTurboShake128, 32>;
type InputShare<T> = Prio3InputShare<<T as Flp>::Field, 32>;
type VerifyState<T> = Prio3VerifyState<<T as Flp>::Field, 32>;
pub type Output<T> = OutputShare<<T as Flp>::Field>;
pub type Aggregate<T> = AggregateShare<<T as Flp>::Field>;
/// Encoded aggregate shares by bucket: the time, or 0 where the job has a single batch.
pub type Shares = BTreeMap<u64, Vec<u8>>;

const WRONG_LENGTH: &str = "must have as many numbers as length says";

/// A circuit of Prio3, with conversions of its measurements and results from and to numbers.
pub trait Kind: Type + Flp<Field: Send + Sync> + Send + Sync + 'static {
    /// Whether a measurement is a list of numbers.
    const VECTOR: bool;
    /// Convert `raw`, which has one number unless `VECTOR`; `len` is the length of a result.
    fn measurement(raw: Vec<u128>, len: usize) -> Result<Self::Measurement, &'static str>;
    fn result(result: Self::AggregateResult) -> Vec<u128>;
}

impl Kind for Count<Field64> {
    const VECTOR: bool = false;
    fn measurement(raw: Vec<u128>, _: usize) -> Result<bool, &'static str> {
        match raw[0] {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("must be 0 or 1"),
        }
    }
    fn result(result: u64) -> Vec<u128> {
        vec![result.into()]
    }
}

impl Kind for Sum<Field64> {
    const VECTOR: bool = false;
    fn measurement(raw: Vec<u128>, _: usize) -> Result<u64, &'static str> {
        raw[0].try_into().map_err(|_| "is above max_measurement")
    }
    fn result(result: u64) -> Vec<u128> {
        vec![result.into()]
    }
}

impl Kind for SumVec<Field128, ParallelSum<Field128, Mul>> {
    const VECTOR: bool = true;
    fn measurement(raw: Vec<u128>, len: usize) -> Result<Vec<u128>, &'static str> {
        if raw.len() == len {
            Ok(raw)
        } else {
            Err(WRONG_LENGTH)
        }
    }
    fn result(result: Vec<u128>) -> Vec<u128> {
        result
    }
}

impl Kind for Histogram<Field128, ParallelSum<Field128, Mul>> {
    const VECTOR: bool = false;
    fn measurement(raw: Vec<u128>, len: usize) -> Result<usize, &'static str> {
        // `prio` uses it as an index without checking it.
        let bucket = usize::try_from(raw[0]).ok().filter(|bucket| *bucket < len);
        bucket.ok_or("is not below length")
    }
    fn result(result: Vec<u128>) -> Vec<u128> {
        result
    }
}

impl Kind for MultihotCountVec<Field128, ParallelSum<Field128, Mul>> {
    const VECTOR: bool = true;
    fn measurement(raw: Vec<u128>, len: usize) -> Result<Vec<bool>, &'static str> {
        if raw.len() != len {
            return Err(WRONG_LENGTH);
        }
        raw.into_iter()
            .map(|value| match value {
                0 => Ok(false),
                1 => Ok(true),
                _ => Err("must hold nothing but 0 and 1"),
            })
            .collect()
    }
    fn result(result: Vec<u128>) -> Vec<u128> {
        result
    }
}

pub enum AnyVdaf {
    Count(P3<Count<Field64>>),
    Sum(P3<Sum<Field64>>),
    SumVec(P3<SumVec<Field128, ParallelSum<Field128, Mul>>>),
    Histogram(P3<Histogram<Field128, ParallelSum<Field128, Mul>>>),
    MultihotCountVec(P3<MultihotCountVec<Field128, ParallelSum<Field128, Mul>>>),
}

/// Evaluate an expression that is generic over the circuit: `dispatch!(any, vdaf => f(vdaf))`.
macro_rules! dispatch {
    ($any:expr, $vdaf:ident => $body:expr) => {
        match $any {
            $crate::vdaf::AnyVdaf::Count($vdaf) => $body,
            $crate::vdaf::AnyVdaf::Sum($vdaf) => $body,
            $crate::vdaf::AnyVdaf::SumVec($vdaf) => $body,
            $crate::vdaf::AnyVdaf::Histogram($vdaf) => $body,
            $crate::vdaf::AnyVdaf::MultihotCountVec($vdaf) => $body,
        }
    };
}
pub(crate) use dispatch;

#[pyclass(frozen, module = "dapd._native")]
pub struct Vdaf {
    pub inner: Arc<AnyVdaf>,
    elements: usize,
}

/// The parameters as Python passed them; errors name the parameter.
struct Given<'a, 'py> {
    kind: &'a str,
    values: [(&'static str, Option<Bound<'py, PyAny>>); 4],
}

impl Given<'_, '_> {
    /// Require that exactly the `expected` parameters were passed.
    fn only(&self, expected: &[&str]) -> Result<()> {
        for (name, value) in &self.values {
            let kind = self.kind;
            match (expected.contains(name), value.is_some()) {
                (true, false) => return err(format!("VDAF {kind} needs {name}")),
                (false, true) => return err(format!("VDAF {kind} takes no {name}")),
                _ => {}
            }
        }
        Ok(())
    }

    /// Return the parameter, a number from 1 to `max`.
    fn get(&self, name: &str, max: u128) -> Result<u128> {
        let given = self.values.iter().find(|(n, _)| *n == name);
        let value = given.and_then(|(_, value)| value.as_ref()?.extract::<u128>().ok());
        match value {
            Some(value) if (1..=max).contains(&value) => Ok(value),
            _ => err(format!("{name} must be a whole number from 1 to {max}")),
        }
    }

    fn chunk_length(&self, elements: u128) -> Result<usize> {
        if elements > MAX_ELEMENTS {
            return err(format!(
                "length is too big: a measurement may have {MAX_ELEMENTS} field elements, not {elements}"
            ));
        }
        Ok(self.get("chunk_length", elements.max(MAX_PADDED_CHUNK))? as usize)
    }
}

fn err<T>(message: String) -> Result<T> {
    Err(Error::value(message))
}

fn bits(max: u128) -> u128 {
    u128::from(max.ilog2()) + 1
}

#[pymethods]
impl Vdaf {
    #[new]
    #[pyo3(signature = (kind, *, length=None, max_measurement=None, chunk_length=None, max_weight=None))]
    fn new<'py>(
        kind: &str,
        length: Option<Bound<'py, PyAny>>,
        max_measurement: Option<Bound<'py, PyAny>>,
        chunk_length: Option<Bound<'py, PyAny>>,
        max_weight: Option<Bound<'py, PyAny>>,
    ) -> Result<Self> {
        let given = Given {
            kind,
            values: [
                ("length", length),
                ("max_measurement", max_measurement),
                ("chunk_length", chunk_length),
                ("max_weight", max_weight),
            ],
        };
        let (built, elements) = build(kind, &given)?;
        let inner = built.map_err(|e| Error::value(format!("VDAF {kind}: {e}")))?;
        Ok(Self { inner: Arc::new(inner), elements: elements as usize })
    }

    #[getter]
    fn measurement_len(&self) -> usize {
        self.elements
    }

    #[getter]
    fn aggregate_share_len(&self) -> usize {
        dispatch!(&*self.inner, vdaf => aggregate_len(vdaf))
    }
}

type Built = (Result<AnyVdaf, prio::vdaf::VdafError>, u128);

fn build(kind: &str, given: &Given<'_, '_>) -> Result<Built> {
    Ok(match kind {
        "count" => {
            given.only(&[])?;
            (P3::new_count(2).map(AnyVdaf::Count), 1)
        }
        "sum" => {
            given.only(&["max_measurement"])?;
            let max = given.get("max_measurement", u128::from(Field64::modulus() - 1))?;
            (P3::new_sum(2, max as u64).map(AnyVdaf::Sum), bits(max))
        }
        "sumvec" => {
            given.only(&["length", "max_measurement", "chunk_length"])?;
            let length = given.get("length", MAX_ELEMENTS)?;
            // The field could hold more, but on the wire this is a uint64.
            let max = given.get("max_measurement", u64::MAX.into())?;
            let elements = length * bits(max);
            let chunk = given.chunk_length(elements)?;
            let vdaf = P3::new_sum_vec(2, max, length as usize, chunk);
            (vdaf.map(AnyVdaf::SumVec), elements)
        }
        "histogram" => {
            given.only(&["length", "chunk_length"])?;
            let length = given.get("length", MAX_ELEMENTS)?;
            let chunk = given.chunk_length(length)?;
            let vdaf = P3::new_histogram(2, length as usize, chunk);
            (vdaf.map(AnyVdaf::Histogram), length)
        }
        "multihotcountvec" => {
            given.only(&["length", "chunk_length", "max_weight"])?;
            let length = given.get("length", MAX_ELEMENTS)?;
            let weight = given.get("max_weight", length)?;
            let elements = length + bits(weight);
            let chunk = given.chunk_length(elements)?;
            let vdaf = P3::new_multihot_count_vec(2, length as usize, weight as usize, chunk);
            (vdaf.map(AnyVdaf::MultihotCountVec), elements)
        }
        _ => {
            return err(format!(
                "kind must be count, sum, sumvec, histogram or multihotcountvec, not {kind:?}"
            ))
        }
    })
}

/// A task's parameters for verification, computed once.
pub struct Task {
    pub vdaf: Arc<AnyVdaf>,
    pub task_id: [u8; 32],
    /// The start of every `InputShareAad`: task id and `TaskConfiguration`.
    pub aad_prefix: Vec<u8>,
    pub context: Vec<u8>,
    pub verify_key: Zeroizing<[u8; 32]>,
    pub bucket_by_time: bool,
}

/// The application context of section "Client Behavior".
pub fn context(task_id: &[u8]) -> Vec<u8> {
    [b"dap-18", task_id].concat()
}

impl Task {
    /// Build the `InputShareAad` from the metadata and public share as encoded on the wire.
    pub fn aad(&self, metadata_and_public_share: &[u8]) -> Vec<u8> {
        [&self.aad_prefix, metadata_and_public_share].concat()
    }

    /// Return the key in `Shares` of a report with this time.
    pub fn key(&self, time: u64) -> u64 {
        if self.bucket_by_time {
            time
        } else {
            0
        }
    }

    /// Return a bucket's name: the time as 8 bytes, or the batch id (empty if there is none yet).
    pub fn bucket(&self, key: u64, batch_id: &[u8]) -> Vec<u8> {
        if self.bucket_by_time {
            key.to_be_bytes().to_vec()
        } else {
            batch_id.to_vec()
        }
    }
}

#[pyclass(frozen, module = "dapd._native")]
pub struct TaskParameters {
    pub task: Arc<Task>,
}

#[pymethods]
impl TaskParameters {
    #[new]
    #[pyo3(signature = (vdaf, task_id, task_configuration, verify_key, *, bucket_by_time))]
    fn new(
        vdaf: &Vdaf,
        task_id: &[u8],
        task_configuration: &[u8],
        verify_key: &[u8],
        bucket_by_time: bool,
    ) -> Result<Self> {
        let task = Task {
            vdaf: vdaf.inner.clone(),
            task_id: fixed("task_id", task_id)?,
            aad_prefix: [task_id, task_configuration].concat(),
            context: context(task_id),
            verify_key: Zeroizing::new(fixed("verify_key", verify_key)?),
            bucket_by_time,
        };
        Ok(Self { task: Arc::new(task) })
    }
}

pub fn fixed<const N: usize>(name: &str, bytes: &[u8]) -> Result<[u8; N]> {
    bytes
        .try_into()
        .map_err(|_| Error::value(format!("{name} must be {N} bytes, not {}", bytes.len())))
}

/// A report's outcome other than "fine".
pub type Rejection = u8;

fn public_share<T: Kind>(vdaf: &P3<T>, bytes: &[u8]) -> Option<Prio3PublicShare<32>> {
    Prio3PublicShare::get_decoded_with_param(vdaf, bytes).ok()
}

fn input_share<T: Kind>(vdaf: &P3<T>, aggregator: usize, bytes: &[u8]) -> Option<InputShare<T>> {
    InputShare::<T>::get_decoded_with_param(&(vdaf, aggregator), bytes).ok()
}

/// Return whether an upload's public share and Leader's input share decode (rule B1).
pub fn leader_decodes<T: Kind>(vdaf: &P3<T>, public: &[u8], input: &[u8]) -> bool {
    public_share(vdaf, public).is_some() && input_share(vdaf, 0, input).is_some()
}

/// `ping_pong_leader_init`: return the encoded state and the outbound message.
pub fn leader_init<T: Kind>(
    vdaf: &P3<T>,
    task: &Task,
    id: &ReportId,
    public: &[u8],
    input: &[u8],
) -> Result<(Vec<u8>, Vec<u8>), Rejection> {
    let input = input_share(vdaf, 0, input).ok_or(report_error::INVALID_MESSAGE)?;
    let public = public_share(vdaf, public).ok_or(report_error::VDAF_VERIFY_ERROR)?;
    let started = vdaf
        .leader_initialized(&task.verify_key, &task.context, &(), id, &public, &input)
        .map_err(|_| report_error::VDAF_VERIFY_ERROR)?;
    let state = started.verifier_state.get_encoded();
    let message = started.message.get_encoded();
    state.and_then(|state| Ok((state, message?))).map_err(|_| report_error::VDAF_VERIFY_ERROR)
}

/// `ping_pong_helper_init`: return the output share and the outbound message (rule B2).
pub fn helper_init<T: Kind>(
    vdaf: &P3<T>,
    task: &Task,
    id: &ReportId,
    public: &[u8],
    input: &[u8],
    inbound: &[u8],
) -> Result<(Output<T>, Vec<u8>), Rejection> {
    let input = input_share(vdaf, 1, input).ok_or(report_error::INVALID_MESSAGE)?;
    let public = public_share(vdaf, public).ok_or(report_error::VDAF_VERIFY_ERROR)?;
    let inbound =
        PingPongMessage::get_decoded(inbound).map_err(|_| report_error::VDAF_VERIFY_ERROR)?;
    let (key, context) = (&task.verify_key, &task.context);
    let state = vdaf
        .helper_initialized(key, context, &(), id, &public, &input, &inbound)
        .and_then(|continuation| continuation.evaluate(context, vdaf));
    match state {
        Ok(PingPongState::FinishedWithOutbound { output_share, message }) => {
            match message.get_encoded() {
                Ok(message) => Ok((output_share, message)),
                Err(_) => Err(report_error::VDAF_VERIFY_ERROR),
            }
        }
        _ => Err(report_error::VDAF_VERIFY_ERROR),
    }
}

/// Decode a Leader's stored state. `None` means that our own database is damaged.
pub fn leader_state<T: Kind>(vdaf: &P3<T>, state: &[u8]) -> Option<VerifyState<T>> {
    VerifyState::<T>::get_decoded_with_param(&(vdaf, 0), state).ok()
}

/// `ping_pong_leader_continued`: return the output share.
pub fn leader_continue<T: Kind>(
    vdaf: &P3<T>,
    task: &Task,
    state: VerifyState<T>,
    inbound: &[u8],
) -> Result<Output<T>, Rejection> {
    let inbound =
        PingPongMessage::get_decoded(inbound).map_err(|_| report_error::VDAF_VERIFY_ERROR)?;
    let state = vdaf
        .leader_continued(&task.context, &(), state, &inbound)
        .and_then(|continuation| continuation.evaluate(&task.context, vdaf));
    match state {
        Ok(PingPongState::Finished { output_share }) => Ok(output_share),
        _ => Err(report_error::VDAF_VERIFY_ERROR),
    }
}

/// Sums of output shares by bucket.
pub struct Sums<T: Kind>(BTreeMap<u64, Aggregate<T>>);

impl<T: Kind> Default for Sums<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Kind> Sums<T> {
    pub fn add(&mut self, key: u64, output: Output<T>) {
        match self.0.get_mut(&key) {
            Some(sum) => sum.accumulate(&output).expect("one VDAF, one length"),
            None => {
                self.0.insert(key, output.into());
            }
        }
    }

    pub fn merge(mut self, other: Self) -> Self {
        for (key, share) in other.0 {
            match self.0.get_mut(&key) {
                Some(sum) => sum.merge(&share).expect("one VDAF, one length"),
                None => {
                    self.0.insert(key, share);
                }
            }
        }
        self
    }

    pub fn encode(&self) -> Shares {
        self.0.iter().map(|(key, sum)| (*key, encode(sum))).collect()
    }
}

pub fn encode<F: FieldElement>(share: &AggregateShare<F>) -> Vec<u8> {
    share.get_encoded().expect("field elements encode")
}

fn aggregate_len<T: Kind>(vdaf: &P3<T>) -> usize {
    vdaf.output_len() * T::Field::ENCODED_SIZE
}

pub fn decode_aggregate<T: Kind>(vdaf: &P3<T>, bytes: &[u8]) -> Option<Aggregate<T>> {
    Aggregate::<T>::get_decoded_with_param(&(vdaf, &()), bytes).ok()
}

/// Subtract an output share from an encoded sum that contains it.
pub fn subtract<T: Kind>(vdaf: &P3<T>, sum: &[u8], output: &Output<T>) -> Option<Vec<u8>> {
    let mut sum = decode_aggregate(vdaf, sum)?;
    let negated: Vec<_> = output.as_ref().iter().map(|x| -*x).collect();
    sum.accumulate(&Output::<T>::from(negated)).ok()?;
    Some(encode(&sum))
}
