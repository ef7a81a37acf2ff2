//! Sequences that many have in common, each kept once, with a number and a value.
//!
//! Owns the look-up from a sequence to its number, and the count of its users: with the last of
//! them it goes. It must not know what the sequences stand for. They come from clients, so they are
//! hashed with a seed.

use std::hash::{BuildHasher, Hash, RandomState};

use hashbrown::HashTable;

/// So many places are looked through one by one, which takes less time than a hash.
const SCANNED_MAX: usize = 8;

#[derive(Debug)]
struct Place<K, V> {
    key: Box<[K]>,
    users: u32,
    value: V,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Numbered<K, V> {
    places: Vec<Place<K, V>>,
    /// Places without users.
    free: Vec<u32>,
    /// The places with users, by the hash of their keys.
    table: HashTable<u32>,
    hasher: RandomState,
}

impl<K, V> Default for Numbered<K, V> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            table: HashTable::new(),
            hasher: RandomState::new(),
        }
    }
}

impl<K: Copy + Eq + Hash, V: Default> Numbered<K, V> {
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(super) fn find(&self, key: &[K]) -> Option<u32> {
        if self.places.len() <= SCANNED_MAX {
            let at = self.places.iter().position(|place| place.users > 0 && *place.key == *key)?;
            return Some(at as u32);
        }
        let hash = self.hasher.hash_one(key);
        self.table.find(hash, |number| *self.places[*number as usize].key == *key).copied()
    }

    /// The number of a sequence that has one more user now.
    pub(super) fn take(&mut self, key: &[K]) -> u32 {
        if let Some(number) = self.find(key) {
            self.places[number as usize].users += 1;
            return number;
        }
        let place = Place { key: key.into(), users: 1, value: V::default() };
        let number = match self.free.pop() {
            Some(number) => {
                self.places[number as usize] = place;
                number
            }
            None => {
                self.places.push(place);
                u32::try_from(self.places.len() - 1).expect("fewer than 2^32 sequences")
            }
        };
        let (places, hasher) = (&self.places, &self.hasher);
        let hash = |number: &u32| hasher.hash_one(&*places[*number as usize].key);
        self.table.insert_unique(hash(&number), number, hash);
        number
    }

    /// Takes back one [`Numbered::take`]; returns the value when that was the last one.
    pub(super) fn release(&mut self, number: u32) -> Option<V> {
        let place = &mut self.places[number as usize];
        place.users -= 1;
        if place.users > 0 {
            return None;
        }
        let (key, value) = (std::mem::take(&mut place.key), std::mem::take(&mut place.value));
        let found = self.table.find_entry(self.hasher.hash_one(&*key), |other| *other == number);
        found.expect("what has users is in the table").remove();
        self.free.push(number);
        Some(value)
    }

    #[cfg(test)]
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.table.iter().copied()
    }

    pub(super) fn key(&self, number: u32) -> &[K] {
        &self.places[number as usize].key
    }

    pub(super) fn users(&self, number: u32) -> u32 {
        self.places[number as usize].users
    }

    pub(super) fn value(&self, number: u32) -> &V {
        &self.places[number as usize].value
    }

    pub(super) fn value_mut(&mut self, number: u32) -> &mut V {
        &mut self.places[number as usize].value
    }
}
