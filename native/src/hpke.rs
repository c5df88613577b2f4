//! HPKE in base mode (RFC 9180), by mls-rs-crypto-awslc; section "HPKE Configuration Request".
//!
//! A key pair keeps its public key, because deriving it for every open would cost a third more.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::agreement::{self, PrivateKey};
use mls_rs_core::crypto::{
    CipherSuite, CipherSuiteProvider, CryptoProvider, HpkeCiphertext, HpkePublicKey, HpkeSecretKey,
};
use mls_rs_crypto_awslc::{AwsLcCipherSuite, AwsLcCryptoProvider};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// The size of a private key of either KEM (RFC 9180, table 2).
const PRIVATE_KEY_LEN: usize = 32;

/// (config id, KEM id, KDF id, AEAD id, public key).
pub type HpkeConfigTuple = (u8, u16, u16, u16, Vec<u8>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kem {
    X25519,
    P256,
}

impl Kem {
    /// Return whether `bytes` have the form in which RFC 9180 serializes `enc` and public keys: no
    /// compressed or hybrid points.
    fn is_point(self, bytes: &[u8]) -> bool {
        match self {
            Self::X25519 => bytes.len() == 32,
            Self::P256 => bytes.len() == 65 && bytes[0] == 4,
        }
    }

    fn derive_public(self, private_key: &[u8]) -> Option<Vec<u8>> {
        let algorithm = match self {
            Self::X25519 => &agreement::X25519,
            Self::P256 => &agreement::ECDH_P256,
        };
        let key = PrivateKey::from_private_key(algorithm, private_key).ok()?;
        Some(key.compute_public_key().ok()?.as_ref().to_vec())
    }
}

/// Look up a suite by its (KEM, KDF, AEAD) ids of RFC 9180, section 7; `None` if not supported.
fn suite(kem_id: u16, kdf_id: u16, aead_id: u16) -> Option<(Kem, AwsLcCipherSuite)> {
    let (kem, suite) = match (kem_id, kdf_id, aead_id) {
        (0x0020, 0x0001, 0x0001) => (Kem::X25519, CipherSuite::CURVE25519_AES128),
        (0x0020, 0x0001, 0x0003) => (Kem::X25519, CipherSuite::CURVE25519_CHACHA),
        (0x0010, 0x0001, 0x0001) => (Kem::P256, CipherSuite::P256_AES128),
        _ => return None,
    };
    let provider = AwsLcCryptoProvider::new().cipher_suite_provider(suite)?;
    Some((kem, provider))
}

fn require_suite(kem_id: u16, kdf_id: u16, aead_id: u16) -> Result<(Kem, AwsLcCipherSuite)> {
    suite(kem_id, kdf_id, aead_id).ok_or_else(|| {
        Error::value(format!(
            "unsupported HPKE suite: KEM {kem_id:#06x}, KDF {kdf_id:#06x}, AEAD {aead_id:#06x}"
        ))
    })
}

/// A recipient's public key, ready to seal to.
pub struct HpkeRecipient {
    pub config_id: u8,
    provider: AwsLcCipherSuite,
    public_key: HpkePublicKey,
}

impl HpkeRecipient {
    pub fn new(config: &HpkeConfigTuple) -> Result<Self> {
        let (config_id, kem_id, kdf_id, aead_id, public_key) = config;
        let (kem, provider) = require_suite(*kem_id, *kdf_id, *aead_id)?;
        let public_key = HpkePublicKey::from(public_key.clone());
        if !kem.is_point(&public_key) || provider.kem_public_key_validate(&public_key).is_err() {
            return Err(Error::value("invalid HPKE public key"));
        }
        Ok(Self { config_id: *config_id, provider, public_key })
    }

    /// `SealBase`: (enc, payload).
    pub fn seal(&self, info: &[u8], aad: &[u8], plaintext: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
        self.provider
            .hpke_seal(&self.public_key, info, Some(aad), plaintext)
            .map(|sealed| (sealed.kem_output, sealed.ciphertext))
            // Only sealing detects a point of small order.
            .map_err(|_| Error::value("invalid HPKE public key"))
    }
}

struct Keys {
    ids: (u8, u16, u16, u16),
    kem: Kem,
    provider: AwsLcCipherSuite,
    public_key: HpkePublicKey,
    private_key: HpkeSecretKey, // zeroized on drop
}

/// One HPKE key pair with its config id. Clones share the keys.
#[pyclass(module = "dapd._native", frozen, skip_from_py_object)]
#[derive(Clone)]
pub struct HpkeKeypair(Arc<Keys>);

impl HpkeKeypair {
    pub fn config_id(&self) -> u8 {
        self.0.ids.0
    }

    /// `OpenBase`; `None` if it fails for any reason.
    pub fn open_raw(
        &self,
        info: &[u8],
        aad: &[u8],
        enc: &[u8],
        payload: &[u8],
    ) -> Option<Zeroizing<Vec<u8>>> {
        let keys = &*self.0;
        if !keys.kem.is_point(enc) {
            return None;
        }
        let sealed = HpkeCiphertext { kem_output: enc.to_vec(), ciphertext: payload.to_vec() };
        keys.provider.hpke_open(&sealed, &keys.private_key, &keys.public_key, info, Some(aad)).ok()
    }

    pub fn from_parts(
        (config_id, kem_id, kdf_id, aead_id): (u8, u16, u16, u16),
        public_key: &[u8],
        private_key: &[u8],
    ) -> Result<Self> {
        let (kem, provider) = require_suite(kem_id, kdf_id, aead_id)?;
        if !kem.is_point(public_key) {
            return Err(Error::value("invalid HPKE public key: wrong length or form"));
        }
        if private_key.len() != PRIVATE_KEY_LEN {
            return Err(Error::value("invalid HPKE private key: it must have 32 bytes"));
        }
        match kem.derive_public(private_key) {
            None => Err(Error::value("invalid HPKE private key: not a scalar of its curve")),
            Some(derived) if derived != public_key => {
                Err(Error::value("HPKE public key does not belong to the private key"))
            }
            Some(_) => Ok(Self(Arc::new(Keys {
                ids: (config_id, kem_id, kdf_id, aead_id),
                kem,
                provider,
                public_key: public_key.to_vec().into(),
                private_key: private_key.to_vec().into(),
            }))),
        }
    }

    pub fn generate_raw(ids: (u8, u16, u16, u16)) -> Result<Self> {
        let (_, provider) = require_suite(ids.1, ids.2, ids.3)?;
        let (private_key, public_key) = provider
            .kem_generate()
            .map_err(|_| Error::value("the operating system gave no randomness"))?;
        // For P-256 the crate leaves out the scalar's leading zero bytes.
        let mut padded = Zeroizing::new([0; PRIVATE_KEY_LEN]);
        padded[PRIVATE_KEY_LEN - private_key.len()..].copy_from_slice(&private_key);
        Self::from_parts(ids, &public_key, &*padded)
    }
}

#[pymethods]
impl HpkeKeypair {
    #[new]
    fn new(
        config_id: u8,
        kem_id: u16,
        kdf_id: u16,
        aead_id: u16,
        public_key: &[u8],
        private_key: &[u8],
    ) -> Result<Self> {
        Self::from_parts((config_id, kem_id, kdf_id, aead_id), public_key, private_key)
    }

    #[staticmethod]
    fn generate(config_id: u8, kem_id: u16, kdf_id: u16, aead_id: u16) -> Result<Self> {
        Self::generate_raw((config_id, kem_id, kdf_id, aead_id))
    }

    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> (u8, u16, u16, u16, Bound<'py, PyBytes>) {
        let (config_id, kem_id, kdf_id, aead_id) = self.0.ids;
        (config_id, kem_id, kdf_id, aead_id, PyBytes::new(py, &self.0.public_key))
    }

    #[getter]
    fn private_key<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.private_key)
    }

    fn open<'py>(
        &self,
        py: Python<'py>,
        info: &[u8],
        aad: &[u8],
        enc: &[u8],
        payload: &[u8],
    ) -> Result<Bound<'py, PyBytes>> {
        py.detach(|| self.open_raw(info, aad, enc, payload))
            .map(|plaintext| PyBytes::new(py, &plaintext))
            .ok_or_else(|| Error::value("HPKE ciphertext does not open"))
    }
}

/// An immutable set of key pairs, looked up by config id.
#[pyclass(module = "dapd._native", frozen, skip_from_py_object)]
#[derive(Clone)]
pub struct Keyring(Arc<BTreeMap<u8, HpkeKeypair>>);

impl Keyring {
    pub fn get(&self, config_id: u8) -> Option<&HpkeKeypair> {
        self.0.get(&config_id)
    }

    pub fn of(keypairs: impl IntoIterator<Item = HpkeKeypair>) -> Result<Self> {
        let mut by_id = BTreeMap::new();
        for keypair in keypairs {
            let config_id = keypair.config_id();
            if by_id.insert(config_id, keypair).is_some() {
                return Err(Error::value(format!("HPKE config id {config_id} occurs twice")));
            }
        }
        Ok(Self(Arc::new(by_id)))
    }
}

#[pymethods]
impl Keyring {
    #[new]
    fn new(keypairs: Vec<PyRef<'_, HpkeKeypair>>) -> Result<Self> {
        Self::of(keypairs.iter().map(|keypair| (**keypair).clone()))
    }

    #[getter]
    fn config_ids<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.keys().copied().collect::<Vec<_>>())
    }
}

#[pyfunction]
pub fn hpke_supported(kem_id: u16, kdf_id: u16, aead_id: u16) -> bool {
    suite(kem_id, kdf_id, aead_id).is_some()
}

#[pyfunction]
pub fn hpke_seal<'py>(
    py: Python<'py>,
    config: HpkeConfigTuple,
    info: &[u8],
    aad: &[u8],
    plaintext: &[u8],
) -> Result<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let (enc, payload) = py.detach(|| HpkeRecipient::new(&config)?.seal(info, aad, plaintext))?;
    Ok((PyBytes::new(py, &enc), PyBytes::new(py, &payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Ids = (u16, u16, u16);
    const X25519_AES: Ids = (0x0020, 0x0001, 0x0001);
    const X25519_CHACHA: Ids = (0x0020, 0x0001, 0x0003);
    const P256_AES: Ids = (0x0010, 0x0001, 0x0001);

    /// RFC 9180, appendices A.1.1, A.2.1, A.3.1: (suite, skRm, pkRm, enc, ct of sequence number 0).
    const VECTORS: [(Ids, &str, &str, &str, &str); 3] = [
        (
            X25519_AES,
            "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8",
            "3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d",
            "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
            "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a9\
             6d8770ac83d07bea87e13c512a",
        ),
        (
            X25519_CHACHA,
            "8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb",
            "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a",
            "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a",
            "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db\
             21993c62ce81883d2dd1b51a28",
        ),
        (
            P256_AES,
            "f3ce7fdae57e1a310d87f1ebbde6f328be0a99cdbcadf4d6589cf29de4b8ffd2",
            "04fe8c19ce0905191ebc298a9245792531f26f0cece2460639e8bc39cb7f706a82\
             6a779b4cf969b8a0e539c7f62fb3d30ad6aa8f80e30f1d128aafd68a2ce72ea0",
            "04a92719c6195d5085104f469a8b9814d5838ff72b60501e2c4466e5e67b325ac9\
             8536d7b61a1af4b78e5b7f951c0900be863c403ce65c9bfcb9382657222d18c4",
            "5ad590bb8baa577f8619db35a36311226a896e7342a6d836d8b7bcd2f20b6c7f\
             9076ac232e3ab2523f39513434",
        ),
    ];

    fn bytes(hex: &str) -> Vec<u8> {
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(byte).collect()
    }

    fn keypair((kem, kdf, aead): Ids) -> HpkeKeypair {
        HpkeKeypair::generate_raw((7, kem, kdf, aead)).unwrap()
    }

    fn config(keypair: &HpkeKeypair) -> HpkeConfigTuple {
        let (id, kem, kdf, aead) = keypair.0.ids;
        (id, kem, kdf, aead, keypair.0.public_key.to_vec())
    }

    #[test]
    fn the_vectors_of_rfc_9180_open() {
        for ((kem, kdf, aead), private_key, public_key, enc, ct) in VECTORS {
            let ids = (1, kem, kdf, aead);
            let keypair =
                HpkeKeypair::from_parts(ids, &bytes(public_key), &bytes(private_key)).unwrap();
            let info = b"Ode on a Grecian Urn";
            let opened = keypair.open_raw(info, b"Count-0", &bytes(enc), &bytes(ct));
            let plaintext = opened.unwrap_or_else(|| panic!("{kem:#x} {aead:#x} does not open"));
            assert_eq!(&plaintext[..], b"Beauty is truth, truth beauty");
        }
    }

    #[test]
    fn what_is_sealed_opens_and_nothing_else_does() {
        for ids in [X25519_AES, X25519_CHACHA, P256_AES] {
            let keypair = keypair(ids);
            let (enc, payload) =
                HpkeRecipient::new(&config(&keypair)).unwrap().seal(b"i", b"a", b"text").unwrap();
            let open = |info: &[u8], aad: &[u8], enc: &[u8], payload: &[u8]| {
                keypair.open_raw(info, aad, enc, payload).map(|plaintext| plaintext.to_vec())
            };
            assert_eq!(open(b"i", b"a", &enc, &payload).unwrap(), b"text");
            assert_eq!(open(b"j", b"a", &enc, &payload), None);
            assert_eq!(open(b"i", b"b", &enc, &payload), None);
            for len in 0..enc.len() {
                assert_eq!(open(b"i", b"a", &enc[..len], &payload), None);
            }
            for len in 0..payload.len() {
                assert_eq!(open(b"i", b"a", &enc, &payload[..len]), None);
            }
            for at in 0..payload.len() {
                let mut payload = payload.clone();
                payload[at] ^= 1;
                assert_eq!(open(b"i", b"a", &enc, &payload), None);
            }
            assert_eq!(open(b"i", b"a", &vec![0; enc.len()], &payload), None);
            assert_eq!(open(b"i", b"a", &[&enc[..], &[0]].concat(), &payload), None);
        }
    }

    #[test]
    fn a_compressed_or_hybrid_point_is_no_enc() {
        let keypair = keypair(P256_AES);
        let (mut enc, payload) =
            HpkeRecipient::new(&config(&keypair)).unwrap().seal(b"", b"", b"text").unwrap();
        let sign = enc[64] & 1;
        enc[0] = 6 | sign;
        assert!(keypair.open_raw(b"", b"", &enc, &payload).is_none());
        enc[0] = 2 | sign;
        assert!(keypair.open_raw(b"", b"", &enc[..33], &payload).is_none());
        assert!(keypair.open_raw(b"", b"", &[0], &payload).is_none());
    }

    #[test]
    fn bad_keys_are_refused_with_what_is_wrong() {
        let reason = |ids: Ids, public_key: &[u8], private_key: &[u8]| {
            let parts = HpkeKeypair::from_parts((1, ids.0, ids.1, ids.2), public_key, private_key);
            parts.err().unwrap().to_string()
        };
        for ids in [X25519_AES, P256_AES] {
            let (one, other) = (keypair(ids), keypair(ids));
            let (public_key, private_key) = (&one.0.public_key, &one.0.private_key);
            assert!(reason(ids, &public_key[1..], private_key).contains("public key"));
            assert!(reason(ids, public_key, &private_key[1..]).contains("32 bytes"));
            assert!(reason(ids, &other.0.public_key, private_key).contains("does not belong"));
        }
        let p256 = keypair(P256_AES);
        for scalar in [[0; 32], [0xff; 32]] {
            assert!(reason(P256_AES, &p256.0.public_key, &scalar).contains("scalar"));
        }
        let (id, kem, kdf, aead, mut point) = config(&p256);
        point[64] ^= 1;
        assert!(HpkeRecipient::new(&(id, kem, kdf, aead, point)).is_err());
        assert!(reason((0x0020, 1, 2), &[0; 32], &[0; 32]).contains("AEAD 0x0002"));
    }

    #[test]
    fn a_public_key_of_small_order_is_an_error() {
        let zero = (1, 0x0020, 1, 1, vec![0; 32]);
        assert!(HpkeRecipient::new(&zero).unwrap().seal(b"", b"", b"text").is_err());
    }

    #[test]
    fn p256_keys_with_leading_zeros_are_whole() {
        for _ in 0..2000 {
            assert_eq!(keypair(P256_AES).0.private_key.len(), 32);
        }
    }

    #[test]
    fn a_keyring_finds_by_id_and_refuses_a_repeated_one() {
        let keypair = keypair(X25519_AES);
        let ring = Keyring::of([keypair.clone()]).unwrap();
        assert!(ring.get(7).is_some() && ring.get(8).is_none());
        assert!(Keyring::of([keypair.clone(), keypair]).is_err());
    }

    /// `cargo test --release -- --ignored --nocapture microseconds`
    #[test]
    #[ignore = "a measurement"]
    fn microseconds_of_an_open() {
        for ids in [X25519_AES, X25519_CHACHA, P256_AES] {
            let keypair = keypair(ids);
            let (enc, payload) =
                HpkeRecipient::new(&config(&keypair)).unwrap().seal(b"i", b"a", &[1; 64]).unwrap();
            let start = std::time::Instant::now();
            for _ in 0..20_000 {
                assert!(keypair.open_raw(b"i", b"a", &enc, &payload).is_some());
            }
            println!("{ids:?}: {:.1} us", start.elapsed().as_secs_f64() * 50.0);
        }
    }
}
