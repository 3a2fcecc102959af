//! Bodies that are larger than memory allows go to the [`spool`](super::spool), within the disk budget.
//!
//! Threat: exhaustion. A full disk is a refusal (`buffer_full`), never a crash.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{
    appetite,
    budget::{Account, Reserved},
    passage::Passages,
    spool::{Refused, Space, Spool},
    standing::Standing,
};
use crate::units::{Auto, ByteSize};

/// `[buffer]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Bytes of one body that stay in memory; the rest goes to disk. When more than half of `memory_total` is in use, 64 KiB.
    /// Too low costs disk writes, too high costs memory. Default: 1MiB.
    pub memory_per_request: ByteSize,
    /// Bytes of all bodies in memory, both directions. `auto`: a quarter of the cgroup's or machine's memory, at most 256 MiB.
    /// Default: auto.
    pub memory_total: Auto<ByteSize>,
    /// Bytes of all bodies on disk; each takes whole pieces of 64 KiB. Default: 8GiB.
    ///
    /// Pieces that are free again stay with the files for up to a minute, so that more of the disk may be taken for as long.
    pub disk_total: ByteSize,
    /// Part of either total that one client may hold, 0 to 1. Default: 0.25.
    pub client_share: f64,
    /// Folder for the two unlinked files that bodies share. Default: `/var/tmp`.
    pub dir: PathBuf,
}

/// Memory and disk for bodies, shared by both directions and by all requests.
#[derive(Debug)]
pub struct Store {
    /// Bytes in memory.
    pub memory: Arc<Account>,
    /// Bytes on disk.
    pub disk: Arc<Account>,
    /// Whose answers wait on disk.
    pub standing: Arc<Standing>,
    /// For answers that go from Puma to the disk.
    pub passages: Passages,
    /// For answers whose clients keep up: a permit each.
    pub large_pieces: Arc<Semaphore>,
    /// Where they are on disk.
    pub spool: Spool,
}

/// Bytes on disk; the budget gets them back when it is dropped.
#[derive(Debug)]
pub struct Spilled {
    space: Arc<Space>,
    len: u64,
    reserved: Reserved,
}

/// Reads a spilled body from its start.
#[derive(Debug)]
pub struct Reader<'a> {
    spilled: &'a Spilled,
    at: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            memory_per_request: ByteSize::mib(1),
            memory_total: Auto::Auto,
            disk_total: ByteSize::gib(8),
            client_share: 0.25,
            dir: PathBuf::from("/var/tmp"),
        }
    }
}

impl Config {
    /// The limits of memory and disk, and what one client may hold of each.
    pub fn limits(&self) -> [(u64, u64); 2] {
        let memory = match self.memory_total {
            Auto::Value(size) => size.0,
            Auto::Auto => (available_memory() / 4).clamp(ByteSize::mib(8).0, ByteSize::mib(256).0),
        };
        [memory, self.disk_total.0].map(|limit| (limit, (limit as f64 * self.client_share.clamp(0.0, 1.0)) as u64))
    }
}

impl Store {
    /// Makes the files, and starts the threads that read and write them.
    pub fn start(config: &Config) -> io::Result<Arc<Self>> {
        let [(memory, memory_share), (disk, disk_share)] = config.limits();
        Ok(Arc::new(Store {
            memory: Account::new(memory, memory_share),
            disk: Account::new(disk, disk_share),
            standing: Standing::new(),
            passages: Passages::new(),
            large_pieces: Arc::new(Semaphore::new(appetite::ANSWERS)),
            spool: Spool::start(&config.dir)?,
        }))
    }

    /// Follows a new configuration.
    pub fn resize(&self, config: &Config) {
        let [(memory, memory_share), (disk, disk_share)] = config.limits();
        self.memory.resize(memory, memory_share);
        self.disk.resize(disk, disk_share);
    }
}

impl Spilled {
    /// No bytes yet.
    pub fn new(store: &Store, reserved: Reserved) -> Self {
        Spilled { space: store.spool.space(), len: 0, reserved }
    }

    /// Appends. Fails with `QuotaExceeded` when the disk budget has no room.
    pub async fn append(&mut self, bytes: Bytes) -> io::Result<()> {
        let end = self.len.saturating_add(bytes.len() as u64);
        if !self.reserved.resize(self.space.size_with(self.len..end)) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let written = self.space.write(vec![bytes], self.len).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        written.map_err(|Refused { error, .. }| error)?;
        self.len = end;
        Ok(())
    }

    /// The number of bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads from the start, piece by piece, without blocking the caller.
    pub fn reader(&self) -> Reader<'_> {
        Reader { spilled: self, at: 0 }
    }

    /// Reads at a place; blocks for as long as the disk takes. For short looks at what was just written.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(into.len());
        self.space.read_exact(into.get_mut(..length).unwrap_or_default(), offset)?;
        Ok(length)
    }
}

impl Reader<'_> {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let left = self.spilled.len.saturating_sub(self.at);
        if left == 0 {
            return Ok(None);
        }
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
        let piece = self.spilled.space.read(self.at, size).await.map_err(|_| io::ErrorKind::BrokenPipe)??;
        self.at = self.at.saturating_add(piece.len() as u64);
        Ok(Some(piece))
    }
}

/// The memory limit of this process's cgroup, or the machine's memory.
pub fn available_memory() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let cgroup = read("/sys/fs/cgroup/memory.max").or_else(|| read("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok())
        .map_or(ByteSize::gib(1).0, |kib| kib.saturating_mul(1024));
    cgroup.unwrap_or(machine).min(machine)
}

/// Bytes read back at once.
const PIECE: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn config(disk: u64) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { dir: dir.path().to_owned(), disk_total: ByteSize(disk), client_share: 1.0, ..Config::default() };
        (dir, config)
    }

    #[tokio::test]
    async fn what_was_spilled_comes_back_in_order() {
        let (_dir, config) = config(1 << 20);
        let store = Store::start(&config).unwrap();
        let mut spilled = Spilled::new(&store, store.disk.open());
        for n in 0..3u8 {
            spilled.append(Bytes::from(vec![n; 200_000])).await.unwrap();
        }
        let mut all = Vec::new();
        let mut reader = spilled.reader();
        while let Some(piece) = reader.next().await.unwrap() {
            all.extend_from_slice(&piece);
        }
        assert_eq!(all, [vec![0u8; 200_000], vec![1; 200_000], vec![2; 200_000]].concat());
        assert_eq!(store.disk.used(), 640 * 1024);
        let mut end = [0; 9];
        assert_eq!((spilled.read_at(599_998, &mut end).unwrap(), end), (2, [2, 2, 0, 0, 0, 0, 0, 0, 0]));
        assert!(spilled.read_at(600_000, &mut end).unwrap() == 0 && spilled.read_at(600_001, &mut end).is_err());
        drop(spilled);
        assert_eq!(store.disk.used(), 0);
    }

    #[tokio::test]
    async fn a_spent_disk_budget_is_an_error_not_a_crash() {
        let (_dir, config) = config(10);
        let store = Store::start(&config).unwrap();
        let mut spilled = Spilled::new(&store, store.disk.open());
        let error = spilled.append(Bytes::from_static(b"eleven bytes")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    }
}
