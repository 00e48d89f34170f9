//! How far a link may be ahead of its peer.
//!
//! What has been written waits in the buffers on the way until the peer reads
//! it, and whatever is written next waits behind it. So a link is ahead of its
//! peer only as far as it takes to keep that busy: by twice what the peer reads
//! in the shortest round trip that was seen. The rule is that of BBR (Cardwell
//! et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016)
//! for what may be in flight; its phases and its pacing in time are left out.
//! Large messages, which travel in chunks, step back while others are sent: of
//! them there is a quarter more than that on the way, not twice as much, and they
//! may fall behind what is possible.
//!
//! Frames carry marks, which the peer sends back when it has read them.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// A mark is set when so much has been written since the last one.
const MARK_BYTES: u64 = 16 << 10;
/// A link may always be this far ahead; and this far with what is alone, for then
/// nothing waits behind it but a word of Raft's now and then. Measured on one
/// machine, where half of either is a fifth slower and more is hardly faster.
const LEAST_BYTES: u64 = 256 << 10;
const LEAST_ALONE_BYTES: u64 = 512 << 10;
/// A link is never further ahead.
const MOST_BYTES: u64 = 4 << 20;
/// What a large message travels in, alone and beside others.
const CHUNK_BYTES: usize = 64 << 10;
const SMALL_CHUNK_BYTES: usize = 32 << 10;
/// What is alone has written so many frames with nothing in between.
const ALONE_AFTER: u32 = 64;
/// A shortest round trip that was seen longer ago is forgotten when the link has
/// nothing under way, in case the way is a longer one now.
const FORGET_AFTER: Duration = Duration::from_secs(10);

/// What one side writes, and the marks on what it reads.
#[derive(Default)]
pub(super) struct Pace {
    all: Progress,
    /// Those of large messages.
    chunks: Progress,
    /// What the peer reads in the shortest round trip: the most of late, for one
    /// in which there was little to read tells little.
    needed: u64,
    /// What the last frame carried, and how many before it carried the same.
    content: Content,
    alone: u32,
    /// No mark comes back any more.
    released: bool,
    /// Those that have not come back, in order.
    marks: VecDeque<Mark>,
    /// The shortest round trip, and when it was seen.
    shortest: Option<(Duration, Instant)>,
    /// The peer's last mark, until it is sent back. Nought for none.
    to_return: u64,
}

/// How many bytes have been written, and how many of them have been read.
#[derive(Clone, Copy, Default)]
struct Progress {
    written: u64,
    read: u64,
}

impl Progress {
    fn ahead(self) -> u64 {
        self.written - self.read
    }
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Content {
    #[default]
    Mixed,
    /// Messages of this channel and nothing else.
    Channel(u32),
    /// A chunk, or no message at all.
    Chunk,
}

/// Names the byte that it follows.
struct Mark {
    at: u64,
    /// How much had been written of large messages.
    chunks: u64,
    set: Instant,
    /// How much had been read then.
    read: u64,
}

/// The peer sent a mark back that was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a mark that was not set")]
pub(crate) struct UnknownMark;

impl Pace {
    fn is_alone(&self) -> bool {
        self.alone >= ALONE_AFTER
    }

    /// Whether more may be written.
    pub(super) fn is_open(&self) -> bool {
        let least = match self.is_alone() {
            true => LEAST_ALONE_BYTES,
            false => LEAST_BYTES,
        };
        self.released || self.all.ahead() < (2 * self.needed).clamp(least, MOST_BYTES)
    }

    /// How large a chunk may be written: nought for none, until a mark comes
    /// back.
    pub(super) fn chunk(&self) -> usize {
        let beside = self.needed + self.needed / 4;
        let beside = beside.clamp(SMALL_CHUNK_BYTES as u64, MOST_BYTES);
        match self.is_open() {
            true if self.is_alone() && self.content == Content::Chunk => CHUNK_BYTES,
            true if self.released || self.chunks.ahead() < beside => SMALL_CHUNK_BYTES,
            _ => 0,
        }
    }

    /// Counts what a frame takes, and those bytes of it that are a chunk's. Returns
    /// the mark that the frame carries, nought for none.
    pub(super) fn wrote(&mut self, bytes: usize, chunk: usize, content: Content) -> u64 {
        if bytes == 0 {
            return 0;
        }
        self.all.written += bytes as u64;
        self.chunks.written += chunk as u64;
        self.alone = match content {
            Content::Mixed => 0,
            same if same == self.content => self.alone.saturating_add(1),
            _ => 0,
        };
        self.content = content;
        let last = self.marks.back().map_or(self.all.read, |mark| mark.at);
        if self.all.written - last < MARK_BYTES {
            return 0;
        }
        let set = Instant::now();
        let old = |(_, seen): &mut (Duration, Instant)| set - *seen > FORGET_AFTER;
        if self.marks.is_empty() {
            self.shortest.take_if(old);
        }
        self.marks.push_back(Mark {
            at: self.all.written,
            chunks: self.chunks.written,
            set,
            read: self.all.read,
        });
        self.all.written
    }

    /// A frame of the peer's has been read, with its mark and the one that it sends
    /// back. Nought stands for none.
    pub(super) fn heard(&mut self, mark: u64, read: u64) -> Result<(), UnknownMark> {
        if mark != 0 {
            self.to_return = mark;
        }
        match read {
            0 => Ok(()),
            read => self.came_back(read),
        }
    }

    /// Whether the peer has read all but what no mark is set behind.
    pub(super) fn is_read(&self) -> bool {
        self.released || self.marks.is_empty()
    }

    /// Whether the peer waits for a mark.
    pub(super) fn owes(&self) -> bool {
        self.to_return != 0
    }

    /// The mark to send back, nought for none.
    pub(super) fn give_back(&mut self) -> u64 {
        std::mem::take(&mut self.to_return)
    }

    /// A mark has come back, and with it all earlier ones.
    fn came_back(&mut self, mark: u64) -> Result<(), UnknownMark> {
        let place = self.marks.binary_search_by_key(&mark, |mark| mark.at);
        let place = place.map_err(|_| UnknownMark)?;
        let Some(mark) = self.marks.drain(..=place).next_back() else {
            return Err(UnknownMark);
        };
        self.all.read = mark.at;
        self.chunks.read = mark.chunks;
        let now = Instant::now();
        let took = (now - mark.set).max(Duration::from_micros(1));
        let shortest = match self.shortest {
            Some((shortest, _)) if shortest < took => shortest,
            _ => self.shortest.insert((took, now)).0,
        };
        let read = (mark.at - mark.read) as f64;
        let needed = read * shortest.as_secs_f64() / took.as_secs_f64();
        self.needed = (needed as u64).max(self.needed - self.needed / 16);
        Ok(())
    }

    /// From now on no mark comes back, and none is waited for.
    pub(super) fn release(&mut self) {
        self.released = true;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const FRAME: usize = 64 << 10;

    /// A peer `away`, which reads a frame in `each`.
    struct Peer {
        away: Duration,
        each: Duration,
        free: Instant,
        /// When the marks come back.
        marks: VecDeque<(Instant, u64)>,
    }

    impl Peer {
        fn new(away: Duration, each: Duration) -> Self {
            Self {
                away,
                each,
                free: Instant::now(),
                marks: VecDeque::new(),
            }
        }

        fn gets(&mut self, bytes: usize, mark: u64) {
            let each = self.each.mul_f64(bytes as f64 / FRAME as f64);
            self.free = self.free.max(Instant::now() + self.away / 2) + each;
            if mark != 0 {
                self.marks.push_back((self.free + self.away / 2, mark));
            }
        }

        async fn next(&mut self, pace: &mut Pace) {
            let (at, mark) = self.marks.pop_front().expect("something is under way");
            advance(at.saturating_duration_since(Instant::now())).await;
            pace.came_back(mark).unwrap();
        }

        /// Gets all that may be written for so many frames. Returns how many
        /// bytes are ahead then.
        async fn flooded(&mut self, pace: &mut Pace, frames: usize) -> u64 {
            for _ in 0..frames {
                while pace.is_open() {
                    self.gets(FRAME, pace.wrote(FRAME, 0, Content::Mixed));
                }
                self.next(pace).await;
            }
            pace.all.ahead()
        }

        /// The same with chunks, and a small message now and then.
        async fn sent_chunks(&mut self, pace: &mut Pace, chunks: usize, small: usize) -> u64 {
            for number in 1..=chunks {
                while pace.chunk() > 0 {
                    let chunk = pace.chunk();
                    self.gets(chunk, pace.wrote(chunk, chunk, Content::Chunk));
                }
                if number % small == 0 {
                    self.gets(1, pace.wrote(1, 0, Content::Mixed));
                }
                self.next(pace).await;
            }
            pace.all.ahead()
        }
    }

    fn near() -> Peer {
        Peer::new(Duration::from_micros(50), Duration::from_micros(100))
    }

    fn far() -> Peer {
        Peer::new(Duration::from_millis(50), Duration::from_millis(1))
    }

    #[tokio::test(start_paused = true)]
    async fn a_near_peer_is_hardly_written_ahead_of() {
        let mut pace = Pace::default();
        let ahead = near().flooded(&mut pace, 1000).await;
        assert!(ahead <= 2 * LEAST_BYTES, "{ahead} bytes");
        let ahead = near().sent_chunks(&mut Pace::default(), 1000, 9).await;
        assert!(ahead <= LEAST_BYTES, "{ahead} bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_far_away_is_kept_busy() {
        // It reads so much in a round trip.
        let busy = 51 * FRAME as u64;
        let ahead = far().flooded(&mut Pace::default(), 1000).await;
        assert!(ahead > busy, "{ahead} bytes");
        let ahead = far().sent_chunks(&mut Pace::default(), 5000, 9).await;
        assert!(ahead > busy, "{ahead} bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_that_is_alone_is_in_no_ones_way() {
        let mut pace = Pace::default();
        near().sent_chunks(&mut pace, 1000, usize::MAX).await;
        assert!(pace.alone >= 999);
        assert!(pace.all.ahead() >= LEAST_ALONE_BYTES - FRAME as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_gets_on_beside_a_flood() {
        let (mut pace, mut peer) = (Pace::default(), near());
        let mut chunks = 0;
        for _ in 0..1000 {
            let chunk = pace.chunk();
            if chunk > 0 {
                chunks += 1;
                peer.gets(chunk, pace.wrote(chunk, chunk, Content::Chunk));
            }
            while pace.is_open() {
                peer.gets(FRAME, pace.wrote(FRAME, 0, Content::Mixed));
            }
            peer.next(&mut pace).await;
        }
        assert!(chunks > 100, "{chunks} of 1000");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_alone_is_written_further_ahead() {
        for (channels, least) in [(1, LEAST_ALONE_BYTES), (2, LEAST_BYTES)] {
            let mut pace = Pace::default();
            for frame in 0..=ALONE_AFTER {
                let mark = pace.wrote(FRAME, 0, Content::Channel(frame % channels));
                advance(Duration::from_millis(1)).await;
                pace.came_back(mark).unwrap();
            }
            while pace.is_open() {
                pace.wrote(FRAME, 0, Content::Channel(0));
            }
            assert_eq!(pace.all.ahead(), least);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_follows_a_way_that_has_become_longer() {
        let mut pace = Pace::default();
        near().flooded(&mut pace, 100).await;
        let (short, _) = pace.shortest.unwrap();
        // All comes back before it goes on.
        let last = pace.marks.back().unwrap().at;
        pace.came_back(last).unwrap();
        advance(2 * FORGET_AFTER).await;
        let ahead = far().flooded(&mut pace, 1000).await;
        assert!(ahead > 51 * FRAME as u64, "{ahead} bytes");
        assert!(pace.shortest.unwrap().0 > short);
    }

    #[test]
    fn a_mark_that_was_not_set_is_an_error() {
        let mut pace = Pace::default();
        assert_eq!(pace.wrote(1, 0, Content::Mixed), 0, "little needs no mark");
        let mark = pace.wrote(FRAME, 0, Content::Mixed);
        assert_eq!(pace.came_back(mark - 1), Err(UnknownMark));
        assert_eq!(pace.came_back(mark), Ok(()));
        assert_eq!(pace.came_back(mark), Err(UnknownMark));
    }
}
