//! Where the entries of the log are in its files.
//!
//! The index has a point for some entries: the first one of a segment, the first one after a truncation, and then one
//! every [`STRIDE`] bytes. An entry is found by reading from the point before it. So a log of a gigabyte needs a few
//! megabytes of memory, no matter how small its entries are.

use std::collections::VecDeque;
use std::ops::Range;

use agentpost_proto::peer::segment_end;

/// Bytes of records between two points.
const STRIDE: u32 = 16 << 10;

/// The place of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) index: u64,
    pub(super) segment: u64,
    pub(super) offset: u32,
}

/// The index of the entries of one log that are in its files.
#[derive(Default)]
pub(super) struct Index {
    points: VecDeque<Point>,
    /// The index after the last entry in the files.
    next: u64,
    /// Whether the next entry needs a point, because it does not follow the last one in the file.
    cut: bool,
    /// The end of the last entry: its segment, and the offset behind it. If a start found that entry in a complete segment,
    /// it is the last point there, which lies before the end by less than [`STRIDE`] or by one entry.
    end: (u64, u32),
}

impl Index {
    /// The index after the last entry.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Adds an entry, whose record of `size` bytes is at this place. It replaces all entries from its index on.
    pub(super) fn add(&mut self, at: Point, size: usize) {
        if at.index != self.next || self.points.is_empty() {
            self.truncate(at.index);
        }
        let near = |last: &Point| last.segment == at.segment && at.offset - last.offset < STRIDE;
        if self.cut || !self.points.back().is_some_and(near) {
            self.points.push_back(at);
        }
        self.cut = false;
        self.next = at.index + 1;
        let behind = u64::from(at.offset) + size as u64;
        self.end = (at.segment, u32::try_from(behind).unwrap_or(u32::MAX));
    }

    /// Removes all entries from `index` on.
    pub(super) fn truncate(&mut self, index: u64) {
        while self.points.back().is_some_and(|last| last.index >= index) {
            self.points.pop_back();
        }
        self.next = index;
        self.cut = true;
    }

    /// Forgets the entries before `index`.
    pub(super) fn forget(&mut self, index: u64) {
        if index >= self.next {
            self.points.clear();
            (self.next, self.cut) = (index, true);
        }
        while self.points.get(1).is_some_and(|second| second.index <= index) {
            self.points.pop_front();
        }
    }

    /// The segment of the first entry, or `None` if there is no entry.
    pub(super) fn first_segment(&self) -> Option<u64> {
        Some(self.points.front()?.segment)
    }

    /// The index of the first entry that has a place, or `None` if there is no entry.
    pub(super) fn first(&self) -> Option<u64> {
        Some(self.points.front()?.index)
    }

    /// The point to begin reading at for each run of entries of `range`, with the entries of the run. The runs follow
    /// each other.
    pub(super) fn runs(&self, range: Range<u64>) -> Vec<(Point, Range<u64>)> {
        let begin = self.points.partition_point(|point| point.index <= range.start);
        let mut runs = Vec::new();
        let mut points = self.points.range(begin.saturating_sub(1)..).peekable();
        while let Some(point) = points.next() {
            let end = points.peek().map_or(self.next, |next| next.index).min(range.end);
            let start = point.index.max(range.start);
            if start >= end {
                break;
            }
            runs.push((*point, start..end));
        }
        runs
    }

    /// The entries before this index may be purged if `bytes` of the log are to be kept. `None` if it is not longer.
    /// `segment_bytes` is the size of a segment.
    pub(super) fn begin_of_last(&self, bytes: u64, segment_bytes: u64) -> Option<u64> {
        let enough = |point: &Point| self.bytes_behind(point, segment_bytes) >= bytes;
        let kept = self.points.partition_point(enough);
        Some(self.points.get(kept.checked_sub(1)?)?.index)
    }

    /// The bytes of the entries from `index` on, counted from the point before it.
    pub(super) fn bytes_from(&self, index: u64, segment_bytes: u64) -> u64 {
        let behind = self.points.partition_point(|point| point.index <= index);
        let begin = self.points.get(behind.saturating_sub(1));
        begin.map_or(0, |begin| self.bytes_behind(begin, segment_bytes))
    }

    /// The bytes from a point to the end of the last entry.
    fn bytes_behind(&self, point: &Point, segment_bytes: u64) -> u64 {
        let position = |segment: u64, offset: u32| segment * segment_bytes + u64::from(offset);
        position(self.end.0, self.end.1).saturating_sub(position(point.segment, point.offset))
    }

    /// What the last record of a complete segment says about this log.
    pub(super) fn segment_end(&self, shard: u32, segment: u64) -> segment_end::Log {
        let points = || self.points.iter().filter(|point| point.segment == segment);
        segment_end::Log {
            shard,
            indexes: points().map(|point| point.index).collect(),
            offsets: points().map(|point| point.offset).collect(),
            next: self.next,
        }
    }

    /// Adds the entries of a complete segment.
    pub(super) fn take_segment(&mut self, segment: u64, end: &segment_end::Log) {
        for (index, offset) in end.indexes.iter().zip(&end.offsets) {
            self.truncate(*index);
            self.points.push_back(Point {
                index: *index,
                segment,
                offset: *offset,
            });
            self.end = (segment, *offset);
        }
        self.truncate(end.next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64, segment: u64, offset: u32) -> Point {
        Point { index, segment, offset }
    }

    #[test]
    fn small_entries_share_a_point_and_runs_end_where_entries_were_replaced() {
        let mut index = Index::default();
        for i in 0..100 {
            index.add(at(i, 1, 1_000 * i as u32), 1_000);
        }
        assert_eq!(index.points.len(), 6, "one point for 17 KB");
        index.truncate(30);
        for i in 30..60 {
            index.add(at(i, 1, 100_000 + 1_000 * i as u32), 1_000);
        }
        let runs = index.runs(20..40);
        assert_eq!(runs[0], (at(17, 1, 17_000), 20..30));
        assert_eq!(runs[1].0, at(30, 1, 130_000));
        assert_eq!(runs[1].1, 30..40);
        index.forget(50);
        assert_eq!((index.points.len(), index.first_segment()), (1, Some(1)));
        index.forget(60);
        assert_eq!(index.first_segment(), None);
        index.add(at(70, 2, 40), 10);
        assert_eq!(index.runs(0..99), [(at(70, 2, 40), 70..71)]);
    }

    #[test]
    fn the_last_bytes_of_the_log_begin_at_a_point() {
        let mut index = Index::default();
        for i in 0..400 {
            index.add(at(i, 1 + i / 100, 10_000 * (i % 100) as u32), 10_000);
        }
        let begin = |bytes| index.begin_of_last(bytes, 1_000_000);
        assert_eq!(begin(1_500_000), Some(250));
        assert_eq!(begin(4_000_000), Some(0));
        assert_eq!(begin(4_000_001), None);
        let from = |first| index.bytes_from(first, 1_000_000);
        assert_eq!(
            [from(0), from(250), from(399)],
            [4_000_000, 1_500_000, 20_000],
            "a point for two"
        );
        index.forget(300);
        assert_eq!(index.bytes_from(0, 1_000_000), 1_000_000, "what is left");
    }

    #[test]
    fn a_complete_segment_says_where_its_entries_are() {
        let (mut written, mut read) = (Index::default(), Index::default());
        for i in 0..10 {
            written.add(at(i, 1, 20_000 * i as u32), 20_000);
        }
        read.take_segment(1, &written.segment_end(0, 1));
        written.truncate(4);
        for i in 4..6 {
            written.add(at(i, 2, 20_000 * i as u32), 20_000);
        }
        written.truncate(5);
        read.take_segment(2, &written.segment_end(0, 2));
        assert_eq!(read.runs(0..9), written.runs(0..9));
        assert_eq!((read.next(), read.runs(0..9).len()), (5, 5));
    }
}
