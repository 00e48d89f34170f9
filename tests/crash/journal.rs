//! What a process writes down. A line is one write, so that a kill leaves whole
//! lines, and at most one that is cut off.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};

/// Names a message: who sent it, to which namespace, and as which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id {
    pub(crate) sender: u64,
    pub(crate) start: u64,
    pub(crate) namespace: u64,
    pub(crate) number: u64,
}

impl Id {
    pub(crate) fn pack(self) -> u64 {
        self.sender << 60 | self.start << 44 | self.namespace << 40 | self.number
    }

    pub(crate) fn unpack(packed: u64) -> Self {
        Self {
            sender: packed >> 60,
            start: packed >> 44 & 0xffff,
            namespace: packed >> 40 & 0xf,
            number: packed & 0xff_ffff_ffff,
        }
    }
}

/// Microseconds by the clock that all processes share.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("it is after 1970").as_micros() as u64
}

pub(crate) struct Journal {
    file: Mutex<File>,
}

impl Journal {
    pub(crate) fn create(path: &Path) -> Self {
        let file = OpenOptions::new().append(true).create(true).open(path);
        Self {
            file: Mutex::new(file.unwrap()),
        }
    }

    pub(crate) fn write(&self, line: String) {
        let line = line + "\n";
        self.file
            .lock()
            .unwrap()
            .write_all(line.as_bytes())
            .unwrap();
    }
}
