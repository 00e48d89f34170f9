//! A disk that loses, at a crash, what was not synced.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use rand::{RngExt, rngs::StdRng};

/// Outlives the process that writes to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// As it is after a crash, but for what of `unsynced` happens to be there.
    synced: Vec<u8>,
    /// As whoever has it open sees it.
    current: Vec<u8>,
    unsynced: Vec<Change>,
    /// Counts the processes that have opened it: an earlier one writes no more.
    opened: u32,
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn apply(self, content: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let end = offset + data.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[offset..end].copy_from_slice(&data);
            }
            Self::Length(length) => content.resize(length, 0),
        }
    }
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Opens it for a new process, to which it belongs from now on.
    pub(crate) fn open(&self) -> Open {
        let mut state = self.state();
        state.opened += 1;
        Open {
            disk: self.clone(),
            number: state.opened,
        }
    }

    /// The process ends. Of what it has not synced, some is there and some not.
    pub(crate) fn crash(&self, rng: &mut StdRng) {
        let mut guard = self.state();
        let state = &mut *guard;
        state.opened += 1;
        for change in std::mem::take(&mut state.unsynced) {
            if rng.random_bool(0.5) {
                change.apply(&mut state.synced);
            }
        }
        state.current.clone_from(&state.synced);
    }

    pub(crate) fn wipe(&self) {
        let mut state = self.state();
        let opened = state.opened + 1;
        *state = State {
            opened,
            ..State::default()
        };
    }
}

#[derive(Debug)]
pub(crate) struct Open {
    disk: Disk,
    number: u32,
}

impl Open {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        match state.opened == self.number {
            true => Ok(state),
            false => Err(io::Error::other("the process is dead")),
        }
    }

    fn change(&self, change: impl Fn() -> Change) -> io::Result<()> {
        let mut state = self.state()?;
        change().apply(&mut state.current);
        state.unsynced.push(change());
        Ok(())
    }
}

impl dchan::Disk for Open {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.current.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|| Change::Length(len as usize))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.state()?;
        let from = offset as usize;
        let content = state.current.get(from..from + buffer.len());
        buffer.copy_from_slice(content.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(|| Change::Write(offset as usize, data.to_owned()))
    }

    fn sync(&self) -> io::Result<()> {
        let mut guard = self.state()?;
        let state = &mut *guard;
        for change in state.unsynced.drain(..) {
            change.apply(&mut state.synced);
        }
        Ok(())
    }
}
