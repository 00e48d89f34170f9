//! Where a node keeps what it must still know after a crash, for those who keep
//! it elsewhere than in a directory.

use std::{fmt, io};

/// A file, or what does as well. [`Builder::data_dir`](crate::Builder::data_dir)
/// is the usual way; this one is for storage that is not a directory, and for
/// tests of crashes. Set by [`Builder::disk`](crate::Builder::disk).
///
/// It belongs to one node at a time. It is read and written on the thread of
/// the node, a few KiB at a time, so it has to be fast.
#[expect(
    clippy::len_without_is_empty,
    reason = "nobody asks whether a disk is empty"
)]
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// How long it is, in bytes. A new one has none.
    fn len(&self) -> io::Result<u64>;

    /// Makes it longer, with zeros, or shorter.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Fills `buffer` from an offset on. An error if that goes past the end.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data`. It is read again at once, and survives a crash after
    /// the next [`sync`](Self::sync).
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Returns when all that has been written will survive a crash. What was
    /// not synced may, in part and in any order.
    fn sync(&self) -> io::Result<()>;
}
