//! The test vectors of the VDAF draft, read from `<repository>/../shared/vectors/vdaf` if present.
//!
//! Each file runs through `prio`'s own checker, which knows all shares, randomness and the step at
//! which a bad report fails. Files with two shares also run through the calls that a job makes.

use std::fs;
use std::path::PathBuf;

use _native::report::report_error::VDAF_VERIFY_ERROR;
use _native::vdaf::{
    helper_init, leader_continue, leader_init, leader_state, AnyVdaf, Kind, Task, P3,
};
use prio::codec::Encode;
use prio::topology::ping_pong::PingPongMessage;
use prio::vdaf::prio3::{Prio3Count, Prio3Histogram, Prio3MultihotCountVec, Prio3Sum, Prio3SumVec};
use prio::vdaf::test_utils::{
    check_test_vector, OperationKind, TestVector, TestVectorVdaf, VerificationTestVector,
};
use zeroize::Zeroizing;

/// Read the files of one VDAF. If there are none, print the reason.
fn files(kind: &str) -> Vec<(String, TestVector)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors/vdaf");
    let Ok(entries) = fs::read_dir(&folder) else {
        println!("skipped: there are no test vectors at {}", folder.display());
        return Vec::new();
    };
    let prefix = format!("{kind}_");
    let mut found: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path))
        .filter(|(name, _)| name.starts_with(&prefix))
        .map(|(name, path)| (name, serde_json::from_slice(&fs::read(path).unwrap()).unwrap()))
        .collect();
    found.sort_by(|a: &(String, TestVector), b| a.0.cmp(&b.0));
    assert!(!found.is_empty(), "no vectors of {kind} in {}", folder.display());
    found
}

/// Return the step that fails, if the file describes a bad report.
fn failure(vector: &TestVector) -> Option<&OperationKind> {
    vector.operations.iter().find(|op| !op.success).map(|op| &op.operation)
}

/// Build a task with the vector's key and context; verifying a report uses nothing else of it.
fn task(vector: &TestVector) -> Task {
    Task {
        vdaf: AnyVdaf::Count(Prio3Count::new_count(2).unwrap()).into(),
        task_id: [0; 32],
        aad_prefix: Vec::new(),
        context: vector.ctx.0.clone(),
        verify_key: Zeroizing::new(vector.verify_key.0.clone().try_into().unwrap()),
        bucket_by_time: false,
    }
}

fn finish_message(report: &VerificationTestVector) -> Vec<u8> {
    let verifier_message = report.verifier_messages[0].0.clone();
    PingPongMessage::Finish { verifier_message }.get_encoded().unwrap()
}

/// Verify one report through the calls of a Leader's and a Helper's job.
fn check_job<T: Kind>(name: &str, vdaf: &P3<T>, vector: &TestVector, index: usize) {
    let (task, report) = (task(vector), &vector.reports[index]);
    let id = report.nonce.0.clone().try_into().unwrap();
    let (public, inputs) = (&report.public_share.0, &report.input_shares);
    let (state, message) = leader_init(vdaf, &task, &id, public, &inputs[0].0).unwrap();
    let verifier_share = report.verifier_shares[0][0].0.clone();
    let expected = PingPongMessage::Initialize { verifier_share }.get_encoded().unwrap();
    assert_eq!(message, expected, "{name}");
    let helper = helper_init(vdaf, &task, &id, public, &inputs[1].0, &message);
    let leader =
        |inbound: &[u8]| leader_continue(vdaf, &task, leader_state(vdaf, &state).unwrap(), inbound);
    match failure(vector) {
        None => {
            let (output, message) = helper.unwrap();
            assert_eq!(output.get_encoded().unwrap(), report.out_shares[1].0, "{name}");
            assert_eq!(message, finish_message(report), "{name}");
            let output = leader(&message).unwrap();
            assert_eq!(output.get_encoded().unwrap(), report.out_shares[0].0, "{name}");
        }
        Some(OperationKind::VerifierSharesToMessage) => {
            assert_eq!(helper.err(), Some(VDAF_VERIFY_ERROR), "{name}");
        }
        Some(OperationKind::VerifyNext) => {
            let output = leader(&finish_message(report));
            assert_eq!(output.err(), Some(VDAF_VERIFY_ERROR), "{name}");
        }
        Some(other) => panic!("{name}: no report fails at {other:?}"),
    }
}

/// Define a test that runs all files of one VDAF.
macro_rules! vectors {
    ($test:ident, $vdaf:ty, $kind:literal) => {
        #[test]
        fn $test() {
            for (name, vector) in files($kind) {
                assert_eq!(name.contains("_bad_"), failure(&vector).is_some(), "{name}");
                check_test_vector::<$vdaf, 32, 16>(&vector);
                if vector.shares == 2 {
                    let vdaf = <$vdaf as TestVectorVdaf>::new(2, &vector.other_params);
                    for index in 0..vector.reports.len() {
                        check_job(&name, &vdaf, &vector, index);
                    }
                }
            }
        }
    };
}

vectors!(prio3_count_follows_its_vectors, Prio3Count, "Prio3Count");
vectors!(prio3_sum_follows_its_vectors, Prio3Sum, "Prio3Sum");
vectors!(prio3_sum_vec_follows_its_vectors, Prio3SumVec, "Prio3SumVec");
vectors!(prio3_histogram_follows_its_vectors, Prio3Histogram, "Prio3Histogram");
vectors!(prio3_multihot_follows_its_vectors, Prio3MultihotCountVec, "Prio3MultihotCountVec");
