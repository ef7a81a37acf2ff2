//! Password hashes: RabbitMQ's, LavinMQ's, and what new users get.
//!
//! Owns the formats and the comparison. It must not know users.

use argon2::password_hash::phc;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::Md5;
use sha2::{Digest, Sha256, Sha512};

/// Cost of new hashes: memory in KiB and passes over it. It takes a few milliseconds, because
/// logins wait in line for each other.
const MEMORY_KIB: u32 = 7 * 1024;
const PASSES: u32 = 2;

/// The most that an imported hash may cost: it is worked out when the user logs in.
const MEMORY_KIB_MAX: u32 = 64 * 1024;
const PASSES_MAX: u32 = 4;
const BCRYPT_COST_MAX: u32 = 12;

/// The algorithm of definitions that name none, and of users without a password.
pub(super) const DEFAULT_ALGORITHM: &str = "rabbit_password_hashing_sha256";

/// Bytes of salt before the hash in RabbitMQ's format.
const SALT_LEN: usize = 4;

/// What is kept of a password, with its notation for listings.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct PasswordHash {
    algorithm: HashAlgorithm,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HashAlgorithm {
    Sha256,
    Sha512,
    Md5,
    Bcrypt,
    Argon2,
}

/// Nothing of a password gets into logs.
impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PasswordHash({:?})", self.algorithm)
    }
}

impl HashAlgorithm {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "" | "rabbit_password_hashing_sha256" | "SHA256" => Some(Self::Sha256),
            "rabbit_password_hashing_sha512" | "SHA512" => Some(Self::Sha512),
            "rabbit_password_hashing_md5" | "MD5" => Some(Self::Md5),
            "Bcrypt" | "bcrypt" => Some(Self::Bcrypt),
            "argon2id" | "argon2" => Some(Self::Argon2),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "rabbit_password_hashing_sha256",
            Self::Sha512 => "rabbit_password_hashing_sha512",
            Self::Md5 => "rabbit_password_hashing_md5",
            Self::Bcrypt => "Bcrypt",
            Self::Argon2 => "argon2id",
        }
    }
}

impl PasswordHash {
    /// Hashes a new password.
    pub(super) fn of(password: &str) -> Self {
        let params = Params::new(MEMORY_KIB, PASSES, 1, None).expect("constants in range");
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let hash = argon2.hash_password(password.as_bytes()).expect("a password of any length");
        Self { algorithm: HashAlgorithm::Argon2, text: hash.to_string() }
    }

    /// The hash of no password, which costs as much to compare with as a new one.
    pub(super) fn decoy() -> Self {
        let (salt, hash) = ("A".repeat(22), "A".repeat(43));
        let text = format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p=1${salt}${hash}");
        Self { algorithm: HashAlgorithm::Argon2, text }
    }

    /// Reads a hash as definitions have it. The error says what is wrong.
    pub(super) fn parse(text: &str, algorithm: &str) -> Result<Self, String> {
        let known = HashAlgorithm::parse(algorithm)
            .ok_or_else(|| format!("unknown password hashing algorithm '{algorithm}'"))?;
        let hash = Self { algorithm: known, text: text.to_owned() };
        match hash.check() {
            Some(()) => Ok(hash),
            None => Err(format!("the password hash is not valid for {}", known.name())),
        }
    }

    fn check(&self) -> Option<()> {
        let digest_len = match self.algorithm {
            HashAlgorithm::Sha256 => 32,
            HashAlgorithm::Sha512 => 64,
            HashAlgorithm::Md5 => 16,
            HashAlgorithm::Bcrypt => {
                let cost = self.text.parse::<bcrypt::HashParts>().ok()?.get_cost();
                return (cost <= BCRYPT_COST_MAX).then_some(());
            }
            HashAlgorithm::Argon2 => {
                let hash = phc::PasswordHash::new(&self.text).ok()?;
                let params = Params::try_from(&hash).ok()?;
                let modest = params.m_cost() <= MEMORY_KIB_MAX && params.t_cost() <= PASSES_MAX;
                return (modest && hash.hash.is_some()).then_some(());
            }
        };
        let bytes = BASE64.decode(&self.text).ok()?;
        (bytes.len() == SALT_LEN + digest_len).then_some(())
    }

    /// Whether it is the hash of this password.
    pub(super) fn is_of(&self, password: &str) -> bool {
        let password = password.as_bytes();
        match self.algorithm {
            HashAlgorithm::Sha256 => self.is_digest::<Sha256>(password),
            HashAlgorithm::Sha512 => self.is_digest::<Sha512>(password),
            HashAlgorithm::Md5 => self.is_digest::<Md5>(password),
            HashAlgorithm::Bcrypt => bcrypt::verify(password, &self.text).unwrap_or(false),
            HashAlgorithm::Argon2 => phc::PasswordHash::new(&self.text)
                .is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok()),
        }
    }

    /// RabbitMQ: four bytes of salt, then the digest of salt and password, in base64.
    fn is_digest<D: Digest>(&self, password: &[u8]) -> bool {
        let Ok(bytes) = BASE64.decode(&self.text) else { return false };
        let Some((salt, digest)) = bytes.split_at_checked(SALT_LEN) else { return false };
        let actual = D::new().chain_update(salt).chain_update(password).finalize();
        is_same(&actual, digest)
    }

    /// Whether working it out takes so long that it is worth remembering.
    pub(super) fn is_slow(&self) -> bool {
        matches!(self.algorithm, HashAlgorithm::Bcrypt | HashAlgorithm::Argon2)
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn algorithm(&self) -> &'static str {
        self.algorithm.name()
    }
}

/// Compares without telling by the time it takes how far the two agree.
pub(super) fn is_same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(differences) == 0 && a.len() == b.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes of `secret` that other programs have made.
    const HASHES: &[(&str, &str)] = &[
        ("", "AQIDBDB9kM21iEUzN1lZ+6VReCsdNqS0sERdAQTcY6Xs3PMz"),
        ("rabbit_password_hashing_sha256", "AQIDBDB9kM21iEUzN1lZ+6VReCsdNqS0sERdAQTcY6Xs3PMz"),
        (
            "rabbit_password_hashing_sha512",
            "AQIDBPhTH2L5HGYB1LWOrn+YpvuQmVOXKGqgsuiJRIZTILRoEvblSJo/WAsym3IZTfuaIaK5KR2o5KwFfTv6Ks\
             xfMIE=",
        ),
        ("rabbit_password_hashing_md5", "AQIDBDgk9ci8Lfh6CKE9Y0AUfmU="),
        ("Bcrypt", "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"),
    ];

    #[test]
    fn hashes_of_other_brokers_are_understood() {
        for (algorithm, text) in HASHES {
            let hash = PasswordHash::parse(text, algorithm).expect(algorithm);
            assert!(hash.is_of("secret"), "{algorithm}");
            assert!(!hash.is_of("Secret") && !hash.is_of(""), "{algorithm}");
        }
    }

    #[test]
    fn new_hashes_are_salted_and_read_back() {
        let (one, other) = (PasswordHash::of("secret"), PasswordHash::of("secret"));
        assert_ne!(one.text(), other.text());
        let read = PasswordHash::parse(one.text(), one.algorithm()).expect("our own");
        assert!(read.is_of("secret") && !read.is_of("guess"));
    }

    #[test]
    fn the_decoy_costs_what_new_hashes_cost() {
        let (decoy, new) = (PasswordHash::decoy(), PasswordHash::of("secret"));
        assert!(decoy.check().is_some() && !decoy.is_of("") && !decoy.is_of("secret"));
        let cost = |hash: &PasswordHash| {
            let lens: Vec<usize> = hash.text.split('$').map(str::len).collect();
            (hash.text.split('$').nth(3).map(str::to_owned), lens)
        };
        assert_eq!(cost(&decoy), cost(&new));
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        let costly = "$argon2id$v=19$m=1048576,t=2,p=1$c29tZXNhbHQ$\
                      RdescudvJCsgt3ub+b6dWRWJTmaaJObG";
        for (text, algorithm) in [
            ("AAAA", "rabbit_password_hashing_sha256"),
            ("no base64!", ""),
            ("$2b$99$x", "Bcrypt"),
            (costly, "argon2id"),
            ("", "scrypt"),
        ] {
            assert!(PasswordHash::parse(text, algorithm).is_err(), "{text} {algorithm}");
        }
    }
}
