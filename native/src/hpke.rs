//! HPKE in base mode (RFC 9180), by mls-rs-crypto-awslc; section "HPKE Configuration Request".
//!
//! Opening takes both keys at hand: deriving the public key anew would cost a third more.

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

/// Both KEMs have private keys of this size (RFC 9180, table 2).
const PRIVATE_KEY_LEN: usize = 32;

/// (config id, KEM id, KDF id, AEAD id, public key).
pub type HpkeConfigTuple = (u8, u16, u16, u16, Vec<u8>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kem {
    X25519,
    P256,
}

impl Kem {
    /// `enc` or a public key as RFC 9180 serializes it: no compressed or hybrid points.
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

/// The supported triples of (KEM, KDF, AEAD) ids of RFC 9180, section 7.
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
            // A point of small order is found out only here.
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

    /// `OpenBase`; `None` if it does not open, for whatever reason.
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
