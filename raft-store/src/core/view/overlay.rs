//! Merges the rows of the database with the batch's writes over them. Both sides are read lazily, so a caller that takes
//! one row pays for one row, no matter how many writes the batch has in the range.

use std::cell::Cell;
use std::cmp::Ordering;
use std::iter::Peekable;

use bytes::Bytes;

use super::touch;
use crate::core::kv::{Fatal, Order, Row, Rows};

/// The rows of a range. The writes, of which `None` deletes, are in the same order as the rows of the base.
pub(super) struct Overlay<'a, I: Iterator> {
    base: Peekable<Rows<'a>>,
    over: Peekable<I>,
    order: Order,
    touched: &'a Cell<u64>,
}

impl<'a, I: Iterator<Item = (&'a Bytes, Option<&'a Bytes>)>> Overlay<'a, I> {
    pub fn new(base: Rows<'a>, over: I, order: Order, touched: &'a Cell<u64>) -> Self {
        Overlay {
            base: base.peekable(),
            over: over.peekable(),
            order,
            touched,
        }
    }

    /// Which side has the next key. `Equal` means that the write replaces the row of the base.
    fn compare(&mut self) -> Ordering {
        match (self.base.peek(), self.over.peek()) {
            (_, None) | (Some(Err(_)), _) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(Ok((base, _))), Some((over, _))) => match self.order {
                Order::Ascending => base.cmp(over),
                Order::Descending => base.cmp(over).reverse(),
            },
        }
    }
}

impl<'a, I: Iterator<Item = (&'a Bytes, Option<&'a Bytes>)>> Iterator for Overlay<'a, I> {
    type Item = Result<Row, Fatal>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            touch(self.touched);
            match self.compare() {
                Ordering::Less => return self.base.next(),
                Ordering::Equal => drop(self.base.next()),
                Ordering::Greater => {}
            }
            if let Some((key, Some(value))) = self.over.next() {
                return Some(Ok((key.clone(), value.clone())));
            }
        }
    }
}
