//! Memory of blocks, cut from huge pages.
//!
//! Each packet of a recording lands in its own block, and the blocks of a thousand recordings, taken one by
//! one from the allocator, lie in thousands of pages, whose places the processor forgets between two packets.
//! So a thread cuts blocks from chunks of one huge page each. A chunk is used again when all blocks cut from it
//! are gone, the oldest first: real time fills every block in less than a second, so none holds one for long.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::BytesMut;

use crate::base::limits::RECORD_BLOCK_SAMPLES;
use crate::uring::{HUGE_BYTES, want_huge_pages};

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// Where a thread's blocks come from.
#[derive(Debug, Default)]
struct Room {
    /// What is left of the chunk that is being cut.
    rest: BytesMut,
    /// Chunks that were cut before it, each kept by an empty end; the oldest first.
    cut: VecDeque<BytesMut>,
}

/// An empty block with room for `RECORD_BLOCK_SAMPLES` and no more.
pub(super) fn block() -> BytesMut {
    ROOM.with_borrow_mut(Room::block)
}

impl Room {
    fn block(&mut self) -> BytesMut {
        if self.rest.capacity() < RECORD_BLOCK_SAMPLES {
            let chunk = self.chunk();
            let end = std::mem::replace(&mut self.rest, chunk);
            // Of the thread's first chunk there is none before it.
            self.cut.extend((end.capacity() > 0).then_some(end));
        }
        let after = self.rest.split_off(RECORD_BLOCK_SAMPLES);
        std::mem::replace(&mut self.rest, after)
    }

    /// One huge page: the oldest whose blocks are all gone, or a new one.
    fn chunk(&mut self) -> BytesMut {
        let reclaimed = self.cut.front_mut().is_some_and(|oldest| oldest.try_reclaim(2 * HUGE_BYTES));
        let oldest = if reclaimed { self.cut.pop_front() } else { None };
        // In twice its size there is a whole one.
        let mut memory = oldest.unwrap_or_else(|| BytesMut::with_capacity(2 * HUGE_BYTES));
        let start = memory.spare_capacity_mut().as_ptr().addr();
        let mut chunk = memory.split_off(start.next_multiple_of(HUGE_BYTES) - start);
        let _behind = chunk.split_off(HUGE_BYTES);
        if !reclaimed {
            want_huge_pages(chunk.spare_capacity_mut());
        }
        chunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks in a chunk.
    const BLOCKS: usize = HUGE_BYTES / RECORD_BLOCK_SAMPLES;

    fn place(block: &BytesMut) -> usize {
        block.as_ptr().addr()
    }

    /// Goal: blocks of one chunk share a huge page, each has room for a whole block, and none lies in
    /// another. Method: two chunks' worth, each filled to its end.
    #[test]
    fn blocks_of_a_chunk_share_a_huge_page() {
        let mut room = Room::default();
        let mut blocks: Vec<BytesMut> = (0..2 * BLOCKS).map(|_| room.block()).collect();
        for (number, block) in (0_u8..=u8::MAX).cycle().zip(&mut blocks) {
            assert_eq!((block.len(), block.capacity()), (0, RECORD_BLOCK_SAMPLES));
            block.resize(RECORD_BLOCK_SAMPLES, number);
        }
        for (number, block) in (0_u8..=u8::MAX).cycle().zip(&blocks) {
            assert!(block.iter().all(|byte| *byte == number));
        }
        for chunk in blocks.chunks(BLOCKS) {
            let page = place(&chunk[0]) / HUGE_BYTES;
            assert!(chunk.iter().all(|block| place(block) / HUGE_BYTES == page));
        }
    }

    /// Goal: memory does not grow while blocks come and go, and no block is cut from memory in use.
    /// Method: fifty chunks' worth of blocks of which the last half a chunk's is in use at any time.
    #[test]
    fn chunks_are_used_again_once_their_blocks_are_gone() {
        let mut room = Room::default();
        let mut in_use = VecDeque::new();
        for _ in 0..50 * BLOCKS {
            let block = room.block();
            assert!(in_use.iter().all(|other| place(other) != place(&block)));
            in_use.push_back(block);
            if in_use.len() > BLOCKS / 2 {
                in_use.pop_front();
            }
        }
        assert!(room.cut.len() <= 2, "{} chunks", room.cut.len());
    }
}
