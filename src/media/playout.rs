//! The cursor of what a leg plays: copies coded bytes from shared audio into packets.

use crate::base::id::PlayId;
use crate::media::order::{Codec, Playlist};
use crate::uring::prefetch;

/// A playlist under way. Pieces follow each other without a gap, across packet boundaries.
#[derive(Debug)]
pub struct Player {
    play: PlayId,
    playlist: Playlist,
    /// The piece that is playing.
    item: usize,
    /// Samples of it already sent.
    offset: usize,
}

impl Player {
    /// Starts at the beginning. `None`: there is nothing to hear, so it ends before it begins.
    pub fn new(play: PlayId, playlist: Playlist) -> Option<Self> {
        let empty = playlist.items.iter().all(|audio| audio.pcmu.is_empty());
        (!empty).then_some(Self { play, playlist, item: 0, offset: 0 })
    }

    /// Brings near what says where the next samples are.
    pub fn prefetch(&self) {
        if let Some(audio) = self.playlist.items.get(self.item) {
            prefetch(audio);
        }
    }

    /// Which play order this is.
    pub fn play(&self) -> PlayId {
        self.play
    }

    /// Samples of the list that were played; a repeated list counts from its beginning.
    pub fn position(&self) -> u64 {
        let before = self.playlist.items.iter().take(self.item).map(|audio| audio.pcmu.len() as u64);
        before.sum::<u64>() + self.offset as u64
    }

    /// Goes on where so many samples were played. Behind the end of a list that is not repeated only
    /// the end is left.
    pub fn skip_to(&mut self, samples: u64) {
        let all: u64 = self.playlist.items.iter().map(|audio| audio.pcmu.len() as u64).sum();
        let mut rest = if self.playlist.repeat { samples % all.max(1) } else { samples.min(all) };
        (self.item, self.offset) = (0, 0);
        while let Some(audio) = self.playlist.items.get(self.item) {
            match usize::try_from(rest) {
                Ok(offset) if offset < audio.pcmu.len() => {
                    self.offset = offset;
                    return;
                }
                Ok(_) | Err(_) => {
                    rest -= audio.pcmu.len() as u64;
                    self.item += 1;
                }
            }
        }
    }

    /// Fills one packet's payload, the rest of a last frame with silence. True: that was the end.
    pub fn fill(&mut self, codec: Codec, payload: &mut [u8]) -> bool {
        let mut rest = payload;
        loop {
            let Some(audio) = self.playlist.items.get(self.item) else {
                rest.fill(codec.silence());
                return true;
            };
            let left = audio.bytes(codec).get(self.offset..).unwrap_or_default();
            let count = left.len().min(rest.len());
            let (head, tail) = rest.split_at_mut(count);
            head.copy_from_slice(&left[..count]);
            rest = tail;
            self.offset += count;
            if count == left.len() {
                self.next_item();
            }
            if rest.is_empty() {
                return self.item >= self.playlist.items.len();
            }
        }
    }

    /// Ends after at most one turn of `fill`'s loop a piece: a repeated list is not empty.
    fn next_item(&mut self) {
        self.offset = 0;
        self.item += 1;
        if self.playlist.repeat && self.item == self.playlist.items.len() {
            self.item = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::order::Audio;

    fn audio(samples: std::ops::Range<i16>) -> Audio {
        Audio::from_pcm(&samples.map(|n| n * 8).collect::<Vec<_>>())
    }

    fn bytes(items: &[Audio], codec: Codec) -> Vec<u8> {
        items.iter().flat_map(|item| item.bytes(codec).to_vec()).collect()
    }

    /// Goal: pieces join without a gap and the last frame is padded with silence.
    /// Method: pieces of odd lengths (one of them empty) in 160-byte packets, against their plain
    /// concatenation.
    #[test]
    fn pieces_follow_each_other_without_a_gap() {
        let items = vec![audio(0..161), audio(0..0), audio(5..17), audio(0..400)];
        for codec in [Codec::Pcmu, Codec::Pcma] {
            let list = Playlist { items: items.clone(), repeat: false };
            let mut player = Player::new(PlayId(1), list).unwrap();
            let mut heard = Vec::new();
            loop {
                let mut payload = [0; 160];
                let end = player.fill(codec, &mut payload);
                heard.extend(payload);
                if end {
                    break;
                }
            }
            let mut wanted = bytes(&items, codec);
            wanted.resize(640, codec.silence());
            assert_eq!(heard, wanted);
        }
    }

    /// Goal: a list that fills its last packet exactly ends with that packet.
    /// Method: 320 samples in two packets of 160.
    #[test]
    fn a_list_of_whole_packets_ends_with_its_last_byte() {
        let list = Playlist { items: vec![audio(0..320)], repeat: false };
        let mut player = Player::new(PlayId(1), list).unwrap();
        let mut payload = [0; 160];
        assert!(!player.fill(Codec::Pcmu, &mut payload));
        assert!(player.fill(Codec::Pcmu, &mut payload));
    }

    /// Goal: a repeated list has no seam and no end. Method: 100 packets of a 77-sample list.
    #[test]
    fn a_repeated_list_goes_on_for_ever_without_a_seam() {
        let items = vec![audio(0..70), audio(100..107)];
        let once = bytes(&items, Codec::Pcma);
        let mut player = Player::new(PlayId(1), Playlist { items, repeat: true }).unwrap();
        let mut heard = Vec::new();
        for _ in 0..100 {
            let mut payload = [0; 160];
            assert!(!player.fill(Codec::Pcma, &mut payload));
            heard.extend(payload);
        }
        let wanted: Vec<u8> = once.iter().copied().cycle().take(16_000).collect();
        assert_eq!(heard, wanted);
    }

    /// Goal: a list goes on from any sample of it, and behind its end only the end is left. Method: each
    /// position of a list with odd and empty pieces, once and repeated, against its plain concatenation.
    #[test]
    fn a_list_goes_on_from_any_position() {
        let items = vec![audio(0..61), audio(0..0), audio(5..17), audio(0..40)];
        let once = bytes(&items, Codec::Pcmu);
        for repeat in [false, true] {
            for position in 0..once.len() {
                let mut player = Player::new(PlayId(1), Playlist { items: items.clone(), repeat }).unwrap();
                player.skip_to(position as u64);
                assert_eq!(player.position(), position as u64);
                let mut payload = vec![0; once.len() - position];
                assert_eq!(player.fill(Codec::Pcmu, &mut payload), !repeat);
                assert_eq!(payload, once[position..]);
            }
        }
        let mut player = Player::new(PlayId(1), Playlist { items, repeat: false }).unwrap();
        player.skip_to(u64::MAX);
        let mut payload = [0; 20];
        assert!(player.fill(Codec::Pcmu, &mut payload));
        assert_eq!(payload, [Codec::Pcmu.silence(); 20]);
    }

    /// Goal: nothing to play is known at once, also when it is to be repeated.
    /// Method: no pieces, and empty pieces.
    #[test]
    fn an_empty_list_is_no_player() {
        for items in [vec![], vec![audio(0..0), audio(0..0)]] {
            assert!(Player::new(PlayId(1), Playlist { items, repeat: true }).is_none());
        }
    }
}
