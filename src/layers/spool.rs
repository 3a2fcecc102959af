//! Bodies on disk: two unlinked files of mode 0600, each with a thread that does all that may wait for it.
//!
//! Threats: exhaustion and exposure. A file never has a name (`O_TMPFILE`), so it is gone with the process whatever happens to that,
//! and a sick disk blocks no event loop. Bodies share the files in [`Chunk`]s: a file for each would cost an inode and a
//! descriptor, and ext4 passes over the inodes that were freed in the last minutes one by one (`recently_deleted`), so that
//! clients who come, stop and go would make each new file dearer than the last. A [`Space`] reads only what was written to it.

mod chunks;

use std::{
    collections::VecDeque,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use tokio::sync::oneshot;

use self::chunks::{CHUNK, Chunk, Chunks};

/// The files.
#[derive(Debug)]
pub struct Spool {
    disks: [Arc<Disk>; 2],
    turn: AtomicBool,
}

/// A file and the way to its thread.
#[derive(Debug)]
struct Disk {
    file: Arc<File>,
    jobs: mpsc::Sender<Job>,
}

/// What one body has of a file. Its bytes have numbers of their own, which may begin anywhere and have no gaps.
#[derive(Debug)]
pub struct Space {
    disk: Arc<Disk>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// In the order of the body.
    chunks: VecDeque<Chunk>,
    /// Which of the body's pieces of [`CHUNK`] bytes is in the first chunk.
    first: u64,
    /// Bytes that are in the file.
    written: Range<u64>,
}

/// What the disk did not take, and why.
#[derive(Debug)]
pub struct Refused {
    /// The reason.
    pub error: io::Error,
    /// All that was to be written.
    pub pieces: Vec<Bytes>,
}

type Job = Box<dyn FnOnce(&mut Chunks) + Send>;

impl Spool {
    /// Makes the files in a folder, and starts their threads.
    pub fn start(dir: &Path) -> io::Result<Self> {
        Self::of([unlinked(dir)?, unlinked(dir)?])
    }

    /// On files that are there. Each gets a thread of its own, as the kernel lets one write to a file at a time.
    pub fn of([first, second]: [File; 2]) -> io::Result<Self> {
        Ok(Spool { disks: [Disk::start(0, first)?, Disk::start(1, second)?], turn: AtomicBool::new(false) })
    }

    /// Nothing yet, in one of the files.
    pub fn space(&self) -> Arc<Space> {
        let [first, second] = &self.disks;
        Space::on(if self.turn.fetch_xor(true, Relaxed) { second } else { first })
    }
}

impl Disk {
    fn start(n: usize, file: File) -> io::Result<Arc<Self>> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let file = Arc::new(file);
        let disk = Arc::new(Disk { file: Arc::clone(&file), jobs });
        std::thread::Builder::new().name(format!("palisade-disk-{n}")).spawn(move || {
            // Where the kernel does not allow it, the disk competes with the requests.
            rustix::process::nice(LEFT_OVER).unwrap_or_default();
            let (mut chunks, mut tidied) = (Chunks::default(), Instant::now());
            loop {
                let job = match chunks.is_untidy() {
                    true => queue.recv_timeout(IDLE),
                    false => queue.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                };
                match job {
                    Ok(job) => job(&mut chunks),
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        shrink(&file, &mut chunks);
                        make_holes(&file, &mut chunks, usize::MAX);
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
                if chunks.is_over() {
                    shrink(&file, &mut chunks);
                }
                if chunks.is_untidy() && tidied.elapsed() >= NEVER_IDLE {
                    shrink(&file, &mut chunks);
                    let unneeded = chunks.unneeded();
                    make_holes(&file, &mut chunks, unneeded);
                    tidied = Instant::now();
                }
            }
        })?;
        Ok(disk)
    }

    fn run(&self, job: Job) {
        // Nobody is there to do it: whoever waits for it is told so by the end of its channel.
        drop(self.jobs.send(job));
    }

    fn give_back(&self, chunks: VecDeque<Chunk>) {
        if !chunks.is_empty() {
            self.run(Box::new(move |all| all.give_back(chunks)));
        }
    }
}

impl Space {
    fn on(disk: &Arc<Disk>) -> Arc<Self> {
        Arc::new(Space { disk: Arc::clone(disk), held: Mutex::default() })
    }

    /// Writes pieces, one after the other, from `at` on. They must join or cover what has been written.
    pub fn write(self: &Arc<Self>, pieces: Vec<Bytes>, at: u64) -> oneshot::Receiver<Result<(), Refused>> {
        let (done, result) = oneshot::channel();
        let space = Arc::clone(self);
        self.disk.run(Box::new(move |chunks| {
            let written = space.write_all(chunks, &pieces, at);
            drop(done.send(written.map_err(|error| Refused { error, pieces })));
        }));
        result
    }

    /// Reads `size` bytes from `at` on.
    pub fn read(self: &Arc<Self>, at: u64, size: usize) -> oneshot::Receiver<io::Result<Bytes>> {
        let (done, result) = oneshot::channel();
        let space = Arc::clone(self);
        self.disk.run(Box::new(move |_| {
            let mut bytes = vec![0; size];
            let read = space.read_exact(&mut bytes, at);
            drop(done.send(read.map(|()| Bytes::from(bytes))));
        }));
        result
    }

    /// Reads at once and blocks for as long as the disk takes. For short looks at what was just written.
    pub fn read_exact(&self, mut into: &mut [u8], mut at: u64) -> io::Result<()> {
        let written = self.lock().written.clone();
        if at < written.start || at.saturating_add(into.len() as u64) > written.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !into.is_empty() {
            let (place, length) = self.place(at, into.len())?;
            let (now, rest) = into.split_at_mut_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
            self.disk.file.read_exact_at(now, place)?;
            (into, at) = (rest, at.saturating_add(length as u64));
        }
        Ok(())
    }

    /// Bytes of the disk that it takes.
    pub fn size(&self) -> u64 {
        (self.lock().chunks.len() as u64).saturating_mul(CHUNK)
    }

    /// Bytes of the disk that it takes when `range` is written, too.
    pub fn size_with(&self, range: Range<u64>) -> u64 {
        let held = self.lock();
        let mut pieces = pieces(range);
        if !held.chunks.is_empty() {
            pieces = pieces.start.min(held.first)..pieces.end.max(held.end());
        }
        pieces.end.saturating_sub(pieces.start).saturating_mul(CHUNK)
    }

    /// What is in front of this will not be read again. True when a part of the disk is free by that.
    pub fn forget(&self, before: u64) -> bool {
        let mut held = self.lock();
        let start = before.clamp(held.written.start, held.written.end);
        held.written.start = start;
        let n = usize::try_from((start / CHUNK).saturating_sub(held.first)).unwrap_or(usize::MAX).min(held.chunks.len());
        held.first = held.first.saturating_add(n as u64);
        let gone: VecDeque<Chunk> = held.chunks.drain(..n).collect();
        drop(held);
        self.disk.give_back(gone);
        n > 0
    }

    fn write_all(&self, chunks: &mut Chunks, pieces: &[Bytes], start: u64) -> io::Result<()> {
        let length: usize = pieces.iter().map(Bytes::len).sum();
        let end = start.saturating_add(length as u64);
        self.lock().reach(start..end, chunks)?;
        let mut at = start;
        for mut piece in pieces.iter().map(Bytes::as_ref) {
            while !piece.is_empty() {
                let (place, length) = self.place(at, piece.len())?;
                let (now, rest) = piece.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
                self.disk.file.write_all_at(now, place)?;
                (piece, at) = (rest, at.saturating_add(length as u64));
            }
        }
        let mut held = self.lock();
        let written = if held.written.is_empty() { start..end } else { held.written.clone() };
        held.written = written.start.min(start)..written.end.max(end);
        Ok(())
    }

    /// Where byte `at` is in the file, and how many of `most` follow it there.
    fn place(&self, at: u64, most: usize) -> io::Result<(u64, usize)> {
        let held = self.lock();
        let n = (at / CHUNK).checked_sub(held.first).and_then(|n| usize::try_from(n).ok()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut here = held.chunks.range(n.min(held.chunks.len())..);
        let mut last = here.next().ok_or(io::ErrorKind::UnexpectedEof)?;
        let within = at % CHUNK;
        let (place, mut length) = (last.start().saturating_add(within), CHUNK.saturating_sub(within));
        for next in here {
            if length >= most as u64 || !last.is_before(next) {
                break;
            }
            (last, length) = (next, length.saturating_add(CHUNK));
        }
        Ok((place, usize::try_from(length).unwrap_or(usize::MAX).min(most)))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn end(&self) -> u64 {
        self.first.saturating_add(self.chunks.len() as u64)
    }

    /// Takes chunks until there is one for every byte of `range`.
    fn reach(&mut self, range: Range<u64>, chunks: &mut Chunks) -> io::Result<()> {
        let joins = range.start <= self.written.end && range.end >= self.written.start;
        if !self.written.is_empty() && !joins {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let pieces = pieces(range);
        if self.chunks.is_empty() {
            self.first = pieces.start;
        }
        while self.first > pieces.start {
            self.chunks.push_front(chunks.take().ok_or(io::ErrorKind::StorageFull)?);
            self.first = self.first.saturating_sub(1);
        }
        while self.end() < pieces.end {
            self.chunks.push_back(chunks.take().ok_or(io::ErrorKind::StorageFull)?);
        }
        Ok(())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.disk.give_back(std::mem::take(&mut held.chunks));
    }
}

/// The numbers of the pieces of [`CHUNK`] bytes that bytes are in.
fn pieces(bytes: Range<u64>) -> Range<u64> {
    bytes.start / CHUNK..bytes.end.div_ceil(CHUNK)
}

/// Gives the disk back what is free at the end of the file. The kernel need not write it then, either.
fn shrink(file: &File, chunks: &mut Chunks) {
    if let Some(all) = chunks.shrink() {
        // A file that cannot be cut off keeps its blocks for whoever has these chunks next.
        file.set_len(u64::from(all).saturating_mul(CHUNK)).unwrap_or_default();
    }
}

/// Gives the disk back what is free between other chunks, which may be written for that first. Where the file system has no holes,
/// it stays for the next body.
fn make_holes(file: &File, chunks: &mut Chunks, most: usize) {
    for run in chunks.cool(most) {
        let (start, length) = (u64::from(run.start).saturating_mul(CHUNK), (run.len() as u64).saturating_mul(CHUNK));
        match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, length) {
            Ok(()) => chunks.free_cold(run),
            Err(_) => chunks.free_warm(run),
        }
    }
}

/// A new file that has no name.
fn unlinked(dir: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(File::from(fd)),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => named_then_unlinked(dir),
        Err(errno) => Err(errno.into()),
    }
}

/// For file systems without `O_TMPFILE`: the name lives for two system calls.
fn named_then_unlinked(dir: &Path) -> io::Result<File> {
    let path = dir.join(format!(".palisade-{:032x}", fastrand::u128(..)));
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::unlink(&path)?;
    Ok(File::from(fd))
}

/// Steps by which a thread of a disk is behind all others of the process where the processor is short: what slow clients have not
/// taken is put away in the time that requests leave.
const LEFT_OVER: i32 = 19;
/// The disk gets back what is free when a thread has had nothing to do for so long ...
const IDLE: Duration = Duration::from_secs(5);
/// ... and, where that never is, what nobody has needed for this time.
const NEVER_IDLE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn spool() -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::start(dir.path()).unwrap();
        (dir, spool)
    }

    fn file(spool: &Spool) -> std::fs::Metadata {
        spool.disks[0].file.metadata().unwrap()
    }

    async fn write(space: &Arc<Space>, bytes: Vec<u8>, at: u64) {
        space.write(vec![bytes.into()], at).await.unwrap().unwrap();
    }

    /// Waits until the thread has done all it was asked for.
    async fn settled(spool: &Spool) {
        let (done, result) = oneshot::channel();
        spool.disks[0].run(Box::new(|_| done.send(()).unwrap()));
        result.await.unwrap();
    }

    #[tokio::test]
    async fn bodies_that_share_a_file_keep_their_own_bytes() {
        let (_dir, spool) = spool();
        let mut random = fastrand::Rng::with_seed(7);
        let mut bodies: Vec<(Arc<Space>, VecDeque<u8>, u64)> = Vec::new();
        for round in 0..600 {
            if bodies.len() < 4 || random.u8(..) < 40 {
                bodies.push((Space::on(&spool.disks[0]), VecDeque::new(), 10 * CHUNK + random.u64(..CHUNK)));
            }
            let n = random.usize(..bodies.len());
            let (space, body, start) = &mut bodies[n];
            let bytes: Vec<u8> = (0..random.usize(1..150_000)).map(|_| random.u8(..)).collect();
            let end = *start + body.len() as u64;
            match random.u8(..8) {
                0 if *start > bytes.len() as u64 => {
                    *start -= bytes.len() as u64;
                    write(space, bytes.clone(), *start).await;
                    bytes.iter().rev().for_each(|byte| body.push_front(*byte));
                }
                1 => drop(bodies.swap_remove(n)),
                2 if !body.is_empty() => {
                    let gone = random.usize(..body.len());
                    body.drain(..gone);
                    *start += gone as u64;
                    space.forget(*start);
                }
                3..5 if !body.is_empty() => {
                    let from = random.usize(..body.len());
                    let read = space.read(*start + from as u64, body.len() - from).await.unwrap().unwrap();
                    assert!(read.iter().eq(body.range(from..)), "round {round}");
                }
                _ => {
                    let halves = [&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..]].map(Bytes::copy_from_slice).to_vec();
                    space.write(halves, end).await.unwrap().unwrap();
                    body.extend(bytes);
                }
            }
        }
        let taken: u64 = bodies.iter().map(|(space, ..)| space.size()).sum();
        assert!(bodies.len() > 2 && file(&spool).len() >= taken - bodies.len() as u64 * CHUNK);
    }

    #[tokio::test]
    async fn nobody_reads_what_another_body_left_behind() {
        let (_dir, spool) = spool();
        let first = Space::on(&spool.disks[0]);
        write(&first, b"of the last client".to_vec(), 0).await;
        drop(first);
        settled(&spool).await;
        let second = Space::on(&spool.disks[0]);
        write(&second, b"mine".to_vec(), 0).await;
        let mut raw = [0; 18];
        spool.disks[0].file.read_exact_at(&mut raw, 0).unwrap();
        assert_eq!(&raw, b"minehe last client", "the chunk is used again as it is");
        for (at, size) in [(0, 5), (4, 1), (3, 2), (CHUNK, 1), (u64::MAX, 1)] {
            assert_eq!(second.read(at, size).await.unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{at} {size}");
        }
        assert_eq!(second.read(1, 3).await.unwrap().unwrap(), "ine");
        assert!(!second.forget(2));
        assert!(second.read(1, 3).await.unwrap().is_err() && second.read(2, 2).await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_gap_is_refused_and_the_bytes_come_back() {
        let (_dir, spool) = spool();
        let space = Space::on(&spool.disks[0]);
        write(&space, b"abc".to_vec(), 100).await;
        for at in [90, 104] {
            let refused = space.write(vec![Bytes::from_static(b"xyz")], at).await.unwrap().unwrap_err();
            assert_eq!((refused.error.kind(), refused.pieces), (io::ErrorKind::InvalidInput, vec![Bytes::from_static(b"xyz")]));
        }
        write(&space, b"def".to_vec(), 103).await;
        write(&space, b"9".to_vec(), 99).await;
        assert_eq!(space.read(99, 7).await.unwrap().unwrap(), "9abcdef");
    }

    #[tokio::test]
    async fn its_size_is_known_before_it_is_written() {
        let (_dir, spool) = spool();
        let space = Space::on(&spool.disks[0]);
        assert_eq!((space.size(), space.size_with(CHUNK..CHUNK + 1), space.size_with(CHUNK - 1..CHUNK + 1)), (0, CHUNK, 2 * CHUNK));
        write(&space, vec![1; CHUNK as usize], 5 * CHUNK).await;
        assert_eq!((space.size(), space.size_with(6 * CHUNK..6 * CHUNK + 1), space.size_with(0..5 * CHUNK)), (CHUNK, 2 * CHUNK, 6 * CHUNK));
        write(&space, vec![1; 10], 6 * CHUNK).await;
        assert_eq!(space.size(), 2 * CHUNK);
        assert!(!space.forget(6 * CHUNK - 1) && space.forget(6 * CHUNK));
        assert_eq!((space.size(), space.read(6 * CHUNK, 10).await.unwrap().unwrap().len()), (CHUNK, 10));
    }

    #[tokio::test]
    async fn the_disk_gets_back_what_is_free() {
        let (_dir, spool) = spool();
        let spaces: Vec<_> = (0..20).map(|_| Space::on(&spool.disks[0])).collect();
        for space in &spaces {
            write(space, vec![1; 1 << 20], 0).await;
        }
        let stays = Space::on(&spool.disks[0]);
        write(&stays, vec![2; CHUNK as usize], 0).await;
        let blocks = || file(&spool).blocks() * 512;
        assert!(blocks() >= 20 << 20);
        drop(spaces);
        tokio::time::sleep(IDLE + Duration::from_secs(1)).await;
        assert!((CHUNK..1 << 20).contains(&blocks()), "what is not needed becomes a hole: {}", blocks());
        assert_eq!(stays.read(0, 3).await.unwrap().unwrap(), [2; 3][..]);
        drop(stays);
        for _ in 0..3 {
            settled(&spool).await;
        }
        assert_eq!((file(&spool).len(), file(&spool).blocks()), (0, 0), "a large file is emptied after the last body");
        let (first, last) = (Space::on(&spool.disks[0]), Space::on(&spool.disks[0]));
        write(&first, vec![1; 1 << 20], 0).await;
        write(&last, vec![1; 1 << 20], 0).await;
        drop(last);
        tokio::time::sleep(IDLE + Duration::from_secs(1)).await;
        assert_eq!(file(&spool).len(), 1 << 20, "the end is cut off");
        drop(first);
        tokio::time::sleep(IDLE + Duration::from_secs(1)).await;
        assert_eq!((file(&spool).len(), file(&spool).blocks()), (0, 0));
    }

    #[test]
    fn the_files_have_no_name_and_are_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::start(dir.path()).unwrap();
        let named = named_then_unlinked(dir.path()).unwrap();
        for file in spool.disks.iter().map(|disk| &*disk.file).chain([&named]) {
            let meta = file.metadata().unwrap();
            assert_eq!((meta.nlink(), meta.mode() & 0o777), (0, 0o600));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_thread_that_is_gone_is_an_error() {
        let (jobs, _) = mpsc::channel();
        let space = Space::on(&Arc::new(Disk { file: Arc::new(tempfile::tempfile().unwrap()), jobs }));
        assert!(space.write(vec![Bytes::from_static(b"x")], 0).await.is_err() && space.read(0, 1).await.is_err());
    }

    #[test]
    fn bodies_take_the_files_in_turn() {
        let (_dir, spool) = spool();
        let taken = [spool.space(), spool.space(), spool.space()].map(|space| Arc::ptr_eq(&space.disk, &spool.disks[0]));
        assert_eq!(taken, [true, false, true]);
    }
}
