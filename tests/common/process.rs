//! Child processes that are told what to do on their standard input and say
//! what they have done on their standard output, line by line.

// Each test program uses some of it, and none shows it to others. A test that cannot
// go on panics.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

// A test program may have it twice.
#[allow(clippy::duplicate_mod)]
#[path = "address.rs"]
mod address;

use std::{
    env, fs,
    io::{BufRead, BufReader, Write, stdin},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use address::free_address;
use tokio::sync::mpsc;

/// Longer than anything takes on a machine that is merely busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    /// What it writes to its standard error.
    log: PathBuf,
}

impl Process {
    pub fn spawn(command: &mut Command, log: &Path) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(log).unwrap())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            stdin,
            lines,
            log: log.to_owned(),
        }
    }

    /// This test program once more, to run one test of it, which finds in the
    /// environment that it is to play a part.
    pub fn same_program(test: &str, role: &str, orders: &str, log: &Path) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]);
        Self::spawn(command.env(role, orders), log)
    }

    /// Waits until it says something that starts with `wanted`, and returns the
    /// rest of that line.
    pub fn until(&self, wanted: &str) -> String {
        self.until_heard(wanted, |_| ())
    }

    /// The same, and hears what it says before as well.
    pub fn until_heard(&self, wanted: &str, mut heard: impl FnMut(&str)) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let line = self.line(end.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|| panic!("never said {wanted:?}:\n{}", self.log()));
            heard(&line);
            if let Some(rest) = line.strip_prefix(wanted) {
                return rest.trim().to_owned();
            }
        }
    }

    /// What it says next, if it does so in time.
    pub fn line(&self, patience: Duration) -> Option<String> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("it has ended:\n{}", self.log()),
        }
    }

    /// What it has said and nobody has heard.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.lines.try_iter()
    }

    pub fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// Its memory, as Linux tells it.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.unwrap().parse().unwrap()
    }

    pub fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status();
        assert!(sent.unwrap().success());
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended well.
    pub fn ended(mut self) {
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
    }

    /// Waits until it has ended with an error, and returns what it logged.
    pub fn failed(mut self) -> String {
        assert!(!self.child.wait().unwrap().success(), "{}", self.log());
        self.log()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

/// Ends the process if the test has not.
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn free_addresses(count: usize) -> Vec<String> {
    (0..count).map(|_| free_address()).collect()
}

/// What this process is told on its standard input, line by line; `None` when
/// that ends.
pub fn told() -> mpsc::UnboundedReceiver<String> {
    let (sender, lines) = mpsc::unbounded_channel();
    thread::spawn(move || {
        for line in stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}
