//! What is known of a worker's calls, in memory that outlasts the worker.
//!
//! One ledger a slot, made by the supervisor. A media shard writes the *mark* of each of its legs, by
//! port; the signalling shard writes one *record* a call. The worker that takes a dead one's place finds
//! both as they were, whenever the other was killed:
//!
//! ```text
//! head     form, first port, pairs, entries, cells
//! index    for each pair of ports one word: the number of a place, and which of its two copies counts
//! places   two copies of a mark
//! entries  for each call one word: the numbers of up to four cells, or nought
//! cells    of 640 bytes: how many of them are used, and those
//! ```
//!
//! What is replaced is written anew beside the old, and then one word is stored that says which counts.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::config::PortRange;
use crate::media::mark::MARK_WORDS;
use crate::uring::SharedMemory;

/// Changes with everything that an older or newer worker would misread.
const FORM: u64 = 0x766f_7872_0000_0003;
const HEAD_WORDS: usize = 8;
/// Words of a place. Ports are handed out at random and places are not: legs share pages.
const PLACE_WORDS: usize = 2 * MARK_WORDS;
/// Words of a cell, the first of which counts bytes.
const CELL_WORDS: usize = 80;
/// Bytes that a cell holds.
const CELL_BYTES: usize = 8 * (CELL_WORDS - 1);
/// Cells of one record; a longer one is not kept.
const CELLS_A_RECORD: usize = 4;
/// Cells are numbered in 16 bits, from 1.
const CELLS_MAX: usize = u16::MAX as usize;
/// Cells of each call: most need one, anchored ones two or three.
const CELLS_A_CALL: usize = 3;
/// Calls that may be known beyond the limit: those that are about to end.
const SPARE_CALLS: usize = 64;

/// The whole ledger. A clone is the same one.
#[derive(Debug, Clone)]
pub struct Ledger {
    memory: Arc<SharedMemory>,
    first_port: u16,
    pairs: usize,
    entries: usize,
    cells: usize,
}

/// A call's place in a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(u32);

impl Ledger {
    /// An empty one for a worker with these ports and at most so many calls.
    ///
    /// # Errors
    /// The kernel has no descriptor or address space left.
    pub fn create(ports: PortRange, calls_max: usize) -> io::Result<Self> {
        let first_port = ports.first & !1;
        let pairs = usize::from(ports.last - first_port) / 2 + 1;
        let entries = calls_max.saturating_add(SPARE_CALLS).min(CELLS_MAX);
        let cells = entries.saturating_mul(CELLS_A_CALL).min(CELLS_MAX);
        let words = HEAD_WORDS + pairs * (1 + PLACE_WORDS) + entries + cells * CELL_WORDS;
        let memory = SharedMemory::create(words)?;
        let head = [u64::from(first_port), pairs as u64, entries as u64, cells as u64];
        for (word, value) in memory.words()[1..].iter().zip(head) {
            word.store(value, Ordering::Relaxed);
        }
        memory.words()[0].store(FORM, Ordering::Release);
        Ok(Self { memory: Arc::new(memory), first_port, pairs, entries, cells })
    }

    /// The one behind a descriptor.
    ///
    /// # Errors
    /// It is none, or of another form.
    pub fn open(file: OwnedFd) -> io::Result<Self> {
        let memory = SharedMemory::open(file)?;
        let words = memory.words();
        let value = |at: usize| words.get(at).map_or(0, |word| word.load(Ordering::Acquire));
        if value(0) != FORM {
            return Err(io::Error::other("a ledger of another form"));
        }
        let size = |at: usize| usize::try_from(value(at)).unwrap_or(usize::MAX);
        let (pairs, entries, cells) = (size(2), size(3), size(4));
        let needed = pairs
            .checked_mul(1 + PLACE_WORDS)
            .zip(cells.checked_mul(CELL_WORDS))
            .and_then(|(places, cells)| places.checked_add(cells)?.checked_add(entries + HEAD_WORDS));
        let first_port = u16::try_from(value(1)).ok();
        match (first_port, needed) {
            (Some(first_port), Some(needed)) if needed <= words.len() && cells <= CELLS_MAX => {
                Ok(Self { memory: Arc::new(memory), first_port, pairs, entries, cells })
            }
            (_, _) => Err(io::Error::other("a ledger whose sizes cannot be")),
        }
    }

    /// What was noted last of the leg at this port.
    pub fn mark(&self, port: u16) -> Option<[u64; MARK_WORDS]> {
        let (place, copy) = located(self.index(port)?.load(Ordering::Acquire))?;
        let mut mark = [0; MARK_WORDS];
        for (value, word) in mark.iter_mut().zip(self.copy(place, copy)?) {
            *value = word.load(Ordering::Relaxed);
        }
        Some(mark)
    }

    /// Forgets the legs at other ports than these; to be called before anybody writes marks.
    pub fn retain_marks(&self, known: &HashSet<u16>) {
        for (pair, index) in (0..).zip(self.indices()) {
            if !known.contains(&(self.first_port + 2 * pair)) {
                index.store(0, Ordering::Release);
            }
        }
    }

    /// Every call's record.
    pub fn records(&self) -> Vec<(EntryId, Vec<u8>)> {
        let mut records = Vec::new();
        for (number, entry) in (0..).zip(self.entries()) {
            let mut record = Vec::new();
            for cell in cells_of(entry.load(Ordering::Acquire)) {
                let Some([length, words @ ..]) = self.cell(cell) else { continue };
                let length = usize::try_from(length.load(Ordering::Relaxed)).unwrap_or(0).min(CELL_BYTES);
                let bytes = words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes());
                record.extend(bytes.take(length));
            }
            if !record.is_empty() {
                records.push((EntryId(number), record));
            }
        }
        records
    }

    /// The pair's number, of a port that is in the ledger.
    fn pair(&self, port: u16) -> Option<usize> {
        let pair = usize::from(port.checked_sub(self.first_port)? / 2);
        (pair < self.pairs).then_some(pair)
    }

    fn index(&self, port: u16) -> Option<&AtomicU64> {
        self.memory.words().get(HEAD_WORDS + self.pair(port)?)
    }

    fn indices(&self) -> &[AtomicU64] {
        self.memory.words().get(HEAD_WORDS..HEAD_WORDS + self.pairs).unwrap_or_default()
    }

    /// Places are numbered from nought.
    fn copy(&self, place: usize, copy: usize) -> Option<&[AtomicU64]> {
        let start = HEAD_WORDS + self.pairs + place * PLACE_WORDS + copy * MARK_WORDS;
        (place < self.pairs).then(|| self.memory.words().get(start..start + MARK_WORDS))?
    }

    fn entries(&self) -> &[AtomicU64] {
        let start = HEAD_WORDS + self.pairs * (1 + PLACE_WORDS);
        self.memory.words().get(start..start + self.entries).unwrap_or_default()
    }

    /// Cells are numbered from 1.
    fn cell(&self, number: u16) -> Option<&[AtomicU64]> {
        let index = usize::from(number).checked_sub(1).filter(|index| *index < self.cells)?;
        let start = HEAD_WORDS + self.pairs * (1 + PLACE_WORDS) + self.entries + index * CELL_WORDS;
        self.memory.words().get(start..start + CELL_WORDS)
    }
}

impl AsFd for Ledger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

/// The place and copy that an index word names; nought: none.
fn located(index: u64) -> Option<(usize, usize)> {
    let place = usize::try_from(index >> 1).ok()?.checked_sub(1)?;
    Some((place, usize::from(index & 1 == 1)))
}

/// Who writes the marks of legs at some of the ports: one shard. A ledger's shards have different ports.
#[derive(Debug)]
pub struct Marks {
    ledger: Ledger,
    /// Places without a leg, the lowest last.
    free: Vec<usize>,
}

impl Marks {
    /// Goes on with the marks there are; new ones get places of these ports' share.
    pub fn new(ledger: Ledger, ports: PortRange) -> Self {
        let indices = ledger.indices().iter();
        let used: HashSet<_> =
            indices.filter_map(|index| Some(located(index.load(Ordering::Acquire))?.0)).collect();
        let pairs = (ports.first..=ports.last).filter(|port| port % 2 == 0);
        let share = pairs.filter_map(|port| ledger.pair(port));
        let free =
            share.filter(|place| !used.contains(place)).collect::<Vec<_>>().into_iter().rev().collect();
        Self { ledger, free }
    }

    /// Notes how far the leg at this RTP port has come. Of a port outside the ledger nothing is noted.
    pub fn write(&mut self, port: u16, mark: &[u64; MARK_WORDS]) {
        let Some(index) = self.ledger.index(port) else { return };
        let (place, copy) = match located(index.load(Ordering::Relaxed)) {
            Some((place, copy)) => (place, 1 - copy),
            None => match self.free.pop() {
                Some(place) => (place, 0),
                None => return,
            },
        };
        for (word, value) in self.ledger.copy(place, copy).unwrap_or_default().iter().zip(mark) {
            word.store(*value, Ordering::Relaxed);
        }
        index.store((place as u64 + 1) << 1 | copy as u64, Ordering::Release);
    }

    /// There is no leg at this port any more.
    pub fn clear(&mut self, port: u16) {
        let Some(index) = self.ledger.index(port) else { return };
        if let Some((place, _)) = located(index.swap(0, Ordering::AcqRel)) {
            self.free.push(place);
        }
    }
}

/// The numbers in an entry.
fn cells_of(entry: u64) -> impl Iterator<Item = u16> {
    let [a, b, c, d, e, f, g, h] = entry.to_le_bytes();
    [[a, b], [c, d], [e, f], [g, h]].into_iter().map(u16::from_le_bytes).filter(|number| *number > 0)
}

/// Who writes a ledger's records. There is one writer at a time.
#[derive(Debug)]
pub struct Records {
    ledger: Ledger,
    free_entries: Vec<u32>,
    free_cells: Vec<u16>,
}

impl Records {
    /// Goes on with the records there are.
    pub fn new(ledger: Ledger) -> Self {
        let entries: Vec<u64> = ledger.entries().iter().map(|entry| entry.load(Ordering::Acquire)).collect();
        let mut is_used = vec![false; ledger.cells + 1];
        for cell in entries.iter().copied().flat_map(cells_of) {
            if let Some(used) = is_used.get_mut(usize::from(cell)) {
                *used = true;
            }
        }
        let free_entries = (0..).zip(&entries).filter(|(_, entry)| **entry == 0).map(|(number, _)| number);
        let free_cells = (1..=u16::MAX).zip(&is_used[1..]).filter(|(_, used)| !**used).map(|(cell, _)| cell);
        let (mut free_entries, mut free_cells): (Vec<_>, Vec<_>) =
            (free_entries.collect(), free_cells.collect());
        // The lowest are taken first, and again: fewer pages.
        free_entries.reverse();
        free_cells.reverse();
        Self { ledger, free_entries, free_cells }
    }

    /// Writes a call's record, in place of the one at `entry` if it has one; says where it is. `None`:
    /// there is no room for it, and nothing of the call is kept.
    pub fn write(&mut self, entry: Option<EntryId>, record: &[u8]) -> Option<EntryId> {
        let entry = entry.or_else(|| self.free_entries.pop().map(EntryId))?;
        let needed = record.len().div_ceil(CELL_BYTES);
        if needed > CELLS_A_RECORD || needed > self.free_cells.len() {
            self.clear(entry);
            return None;
        }
        let mut numbers = [0_u8; 8];
        for (bytes, number) in record.chunks(CELL_BYTES).zip(numbers.chunks_exact_mut(2)) {
            let cell = self.free_cells.pop()?;
            number.copy_from_slice(&cell.to_le_bytes());
            self.fill(cell, bytes);
        }
        self.replace(entry, u64::from_le_bytes(numbers));
        Some(entry)
    }

    /// A call is over.
    pub fn clear(&mut self, entry: EntryId) {
        self.replace(entry, 0);
        self.free_entries.push(entry.0);
    }

    fn fill(&self, cell: u16, bytes: &[u8]) {
        let Some([length, words @ ..]) = self.ledger.cell(cell) else { return };
        for (word, part) in words.iter().zip(bytes.chunks(8)) {
            let mut value = [0; 8];
            value[..part.len()].copy_from_slice(part);
            word.store(u64::from_le_bytes(value), Ordering::Relaxed);
        }
        length.store(bytes.len() as u64, Ordering::Relaxed);
    }

    fn replace(&mut self, entry: EntryId, cells: u64) {
        let Some(word) = self.ledger.entries().get(entry.0 as usize) else { return };
        let old = word.swap(cells, Ordering::AcqRel);
        for cell in cells_of(old) {
            // There are keys in it.
            for word in self.ledger.cell(cell).unwrap_or_default() {
                word.store(0, Ordering::Relaxed);
            }
            self.free_cells.push(cell);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: PortRange = PortRange { first: 20_000, last: 20_007 };

    fn ledger() -> Ledger {
        Ledger::create(PORTS, 2).unwrap()
    }

    /// The same memory as another process sees it.
    fn reopened(ledger: &Ledger) -> Ledger {
        Ledger::open(ledger.as_fd().try_clone_to_owned().unwrap()).unwrap()
    }

    /// Goal: the newest mark of a port is found by who opens the ledger anew, and none where the leg is
    /// gone or the port is not of this ledger. Method: several writes to two ports.
    #[test]
    fn the_newest_mark_of_each_port_is_found() {
        let ledger = ledger();
        let mut marks = Marks::new(ledger.clone(), PORTS);
        for value in 1..=3 {
            marks.write(20_000, &[value; MARK_WORDS]);
            marks.write(20_006, &[10 * value; MARK_WORDS]);
            let other = reopened(&ledger);
            assert_eq!(other.mark(20_000), Some([value; MARK_WORDS]));
            assert_eq!(other.mark(20_006), Some([10 * value; MARK_WORDS]));
        }
        for port in [0, 19_998, 20_002, 20_008, u16::MAX] {
            marks.write(if port == 20_002 { 0 } else { port }, &[9; MARK_WORDS]);
            assert_eq!(ledger.mark(port), None, "{port}");
        }
        marks.clear(20_000);
        assert_eq!(reopened(&ledger).mark(20_000), None);
    }

    /// Goal: whoever writes next leaves the marks of others alone, whatever places they have, and never
    /// runs out of places. Method: two writers with half of the ports each, then one with all of them.
    #[test]
    fn marks_outlast_their_writer() {
        let ledger = ledger();
        let [low, high] = [(20_000, 20_003), (20_004, 20_007)].map(|(first, last)| PortRange { first, last });
        let mut writers = [low, high].map(|ports| Marks::new(ledger.clone(), ports));
        writers[0].write(20_002, &[1; MARK_WORDS]);
        writers[1].write(20_004, &[2; MARK_WORDS]);
        let mut next = Marks::new(reopened(&ledger), PORTS);
        for (port, value) in [(20_000, 3), (20_006, 4), (20_004, 5)] {
            next.write(port, &[value; MARK_WORDS]);
        }
        let all = [20_000, 20_002, 20_004, 20_006].map(|port| ledger.mark(port).map(|mark| mark[7]));
        assert_eq!(all, [Some(3), Some(1), Some(5), Some(4)]);
        ledger.retain_marks(&HashSet::from([20_000, 20_004, 20_006]));
        assert_eq!(ledger.mark(20_002), None);
        let mut next = Marks::new(ledger.clone(), PORTS);
        next.write(20_002, &[7; MARK_WORDS]);
        next.clear(20_004);
        next.write(20_004, &[6; MARK_WORDS]);
        assert_eq!((ledger.mark(20_004), next.free.len()), (Some([6; MARK_WORDS]), 0));
    }

    /// Goal: records of any length up to four cells are read as they were written last, by whoever comes
    /// after, who then goes on writing without harm to the others. Method: lengths about cells' edges,
    /// replaced and cleared, with a second writer in between.
    #[test]
    fn records_outlast_their_writer() {
        let ledger = Ledger::create(PORTS, 20).unwrap();
        let mut records = Records::new(ledger.clone());
        let text = |length: usize, salt: u8| -> Vec<u8> {
            (0..length).map(|at| u8::try_from(at % 251).unwrap() ^ salt).collect()
        };
        let lengths = [1, 7, 8, CELL_BYTES - 1, CELL_BYTES, CELL_BYTES + 1, 4 * CELL_BYTES];
        let mut places = Vec::new();
        for length in lengths {
            let first = records.write(None, &text(length, 1)).unwrap();
            places.push(records.write(Some(first), &text(length, 2)).unwrap());
            assert_eq!(places.last(), Some(&first));
        }
        let other = reopened(&ledger);
        let found = other.records();
        for (length, place) in lengths.into_iter().zip(&places) {
            assert!(found.contains(&(*place, text(length, 2))), "{length}");
        }
        assert_eq!(found.len(), lengths.len());
        let mut records = Records::new(other);
        records.clear(places[0]);
        let more = records.write(None, &text(30, 3)).unwrap();
        assert_eq!(records.write(Some(places[1]), &text(31, 4)), Some(places[1]));
        let found = ledger.records();
        assert_eq!(found.len(), lengths.len());
        assert!(found.contains(&(more, text(30, 3))) && found.contains(&(places[1], text(31, 4))));
        assert!(found.contains(&(places[6], text(4 * CELL_BYTES, 2))));
    }

    /// Goal: what does not fit is not kept, harms nothing, and its room serves others. Method: a record
    /// too long, more records than entries, and cells used up by long ones.
    #[test]
    fn what_does_not_fit_is_not_kept() {
        let ledger = ledger();
        let mut records = Records::new(ledger.clone());
        let place = records.write(None, b"first").unwrap();
        assert_eq!(records.write(Some(place), &vec![1; 4 * CELL_BYTES + 1]), None);
        assert!(ledger.records().is_empty(), "an old record would be wrong");
        let many: Vec<_> = std::iter::from_fn(|| records.write(None, b"x")).collect();
        assert_eq!(many.len(), 2 + SPARE_CALLS);
        for place in many {
            records.clear(place);
        }
        let long = vec![7; 4 * CELL_BYTES];
        let many: Vec<_> = std::iter::from_fn(|| records.write(None, &long)).collect();
        assert_eq!(many.len(), (2 + SPARE_CALLS) * CELLS_A_CALL / 4);
        assert_eq!(ledger.records().len(), many.len());
    }

    /// Goal: keys of calls that are over are not left in memory. Method: a record, then cleared; every
    /// word is looked at.
    #[test]
    fn nothing_is_left_of_a_call_that_is_over() {
        let ledger = ledger();
        let mut records = Records::new(ledger.clone());
        let place = records.write(None, b"inline:secret").unwrap();
        records.clear(place);
        let secret = u64::from_le_bytes(*b"inline:s");
        assert!(ledger.memory.words().iter().all(|word| word.load(Ordering::Relaxed) != secret));
    }

    /// Goal: what is no ledger is refused. Method: other memory, another form, sizes beyond its end.
    #[test]
    fn what_is_no_ledger_is_refused() {
        let open = |words: &[u64]| {
            let memory = SharedMemory::create(64).unwrap();
            for (word, value) in memory.words().iter().zip(words) {
                word.store(*value, Ordering::Relaxed);
            }
            Ledger::open(memory.as_fd().try_clone_to_owned().unwrap()).is_err()
        };
        assert!(open(&[]) && open(&[FORM + 1, 0, 0, 0, 0]));
        assert!(open(&[FORM, 0, 1000, 0, 0]) && open(&[FORM, 0, u64::MAX, u64::MAX, u64::MAX]));
        assert!(open(&[FORM, 70_000, 0, 0, 0]) && !open(&[FORM, 20_000, 0, 5, 0]));
    }
}
