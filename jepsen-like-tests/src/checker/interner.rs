//! Interned texts: a history names each message many times.

use std::hash::{BuildHasher as _, RandomState};

/// An interned text; 0 is the empty text.
pub type Symbol = u32;

/// Interns texts.
pub struct Interner {
    text: String,
    /// The end of each text in `text`.
    ends: Vec<usize>,
    /// A hash table with open addressing: a name + 1, or 0. Its length is a power of two.
    slots: Vec<u32>,
    hasher: RandomState,
}

impl Default for Interner {
    fn default() -> Self {
        let mut names = Interner {
            text: String::new(),
            ends: Vec::new(),
            slots: vec![0; 64],
            hasher: RandomState::new(),
        };
        names.of("");
        names
    }
}

impl Interner {
    /// Interns a text.
    pub fn of(&mut self, text: &str) -> Symbol {
        if (self.ends.len() + 1) * 2 > self.slots.len() {
            self.grow();
        }
        let slot = self.slot(text);
        if self.slots[slot] == 0 {
            self.text.push_str(text);
            self.ends.push(self.text.len());
            self.slots[slot] = self.ends.len() as u32;
        }
        self.slots[slot] - 1
    }

    /// The text of a name.
    pub fn text(&self, name: Symbol) -> &str {
        let place = name as usize;
        let begin = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[begin..self.ends[place]]
    }

    /// The number of interned texts; all names are less.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// The slot of a text, or the free slot for it.
    fn slot(&self, text: &str) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(text) as usize & mask;
        while self.slots[slot] != 0 && self.text(self.slots[slot] - 1) != text {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        self.slots = vec![0; self.slots.len() * 2];
        let mask = self.slots.len() - 1;
        for name in 0..self.ends.len() as Symbol {
            let mut slot = self.hasher.hash_one(self.text(name)) as usize & mask;
            while self.slots[slot] != 0 {
                slot = (slot + 1) & mask;
            }
            self.slots[slot] = name + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_has_one_number() {
        let mut names = Interner::default();
        assert_eq!(names.of(""), 0);
        let texts: Vec<String> = (0..1_000).map(|n| format!("msg-{n}")).collect();
        let numbers: Vec<Symbol> = texts.iter().map(|text| names.of(text)).collect();
        for (text, number) in texts.iter().zip(numbers) {
            assert_eq!((names.of(text), names.text(number)), (number, text.as_str()));
        }
        assert_eq!((names.count(), names.text(0)), (1_001, ""));
    }
}
