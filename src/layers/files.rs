//! Unlinked files of mode 0600, and the two threads that do all that may wait for a disk.
//!
//! Threats: exhaustion and exposure. A file never has a name (`O_TMPFILE`), so it is gone with its last handle whatever happens to the
//! process, and a sick disk blocks no event loop. Files that nobody needs any more are emptied and used again, as long as the
//! disk has something to do: ext4 passes over inodes that were freed in the last minutes, one by one (`recently_deleted`), so
//! that clients who come, stop and go would make each new file dearer than the last.

use std::{
    fs::File,
    io,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Resource, getrlimit},
};
use tokio::sync::oneshot;

/// The threads, and the files that wait to be used again. Clones share both.
#[derive(Clone, Debug)]
pub struct Files {
    jobs: mpsc::Sender<Job>,
    spare: Arc<Mutex<Spare>>,
    most: usize,
}

/// A file without a name, which goes back to be used again when nobody has it any more.
#[derive(Debug)]
pub struct Unlinked {
    file: Arc<File>,
    dir: PathBuf,
    files: Files,
}

/// Emptied files of one folder.
#[derive(Debug, Default)]
struct Spare {
    dir: PathBuf,
    files: Vec<Arc<File>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Files {
    /// Tries the folder, and starts the threads.
    pub fn start(dir: &Path) -> io::Result<Self> {
        // A folder that cannot be written to would otherwise be found out by the first large upload.
        drop(unlinked(dir)?);
        let (jobs, queue) = mpsc::channel::<Job>();
        let (queue, files) = (Arc::new(Mutex::new(queue)), Files { jobs, spare: Arc::default(), most: most() });
        for n in 0..THREADS {
            let (queue, spare) = (Arc::clone(&queue), Arc::clone(&files.spare));
            std::thread::Builder::new().name(format!("palisade-disk-{n}")).spawn(move || {
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(IDLE);
                    match job {
                        Ok(job) => job(),
                        Err(mpsc::RecvTimeoutError::Timeout) => lock(&spare).files = Vec::new(),
                        Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    }
                }
            })?;
        }
        Ok(files)
    }

    /// Runs blocking work on a thread for it.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> oneshot::Receiver<io::Result<T>> {
        let (done, result) = oneshot::channel();
        self.submit(Box::new(move || drop(done.send(work()))));
        result
    }

    /// An empty file. May wait for the disk.
    pub fn open(&self, dir: &Path) -> io::Result<Unlinked> {
        let spare = Some(lock(&self.spare)).filter(|spare| spare.dir == dir).and_then(|mut spare| spare.files.pop());
        let file = spare.map_or_else(|| unlinked(dir).map(Arc::new), Ok)?;
        Ok(Unlinked { file, dir: dir.to_owned(), files: self.clone() })
    }

    fn submit(&self, job: Job) {
        if let Err(mpsc::SendError(job)) = self.jobs.send(job) {
            drop(job);
        }
    }
}

impl Deref for Unlinked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for Unlinked {
    fn drop(&mut self) {
        let (file, dir) = (Arc::clone(&self.file), std::mem::take(&mut self.dir));
        let (spare, most) = (Arc::clone(&self.files.spare), self.files.most);
        self.files.submit(Box::new(move || {
            if file.set_len(0).is_err() {
                return;
            }
            let mut spare = lock(&spare);
            if spare.dir != dir {
                *spare = Spare { dir, files: Vec::new() };
            }
            if spare.files.len() < most {
                spare.files.push(file);
            }
        }));
    }
}

fn lock(spare: &Mutex<Spare>) -> MutexGuard<'_, Spare> {
    spare.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The result of a job; a job that never ran failed.
pub fn finished<T>(result: Result<io::Result<T>, oneshot::error::RecvError>) -> io::Result<T> {
    result.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
}

/// For file systems without `O_TMPFILE`: the name lives for two system calls.
fn named_then_unlinked(dir: &Path) -> io::Result<File> {
    let path = dir.join(format!(".palisade-{:032x}", fastrand::u128(..)));
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::unlink(&path)?;
    Ok(File::from(fd))
}

/// How many files may wait to be used again: a descriptor each, of which connections must not run short.
fn most() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(descriptors / PART).unwrap_or(MOST).min(MOST)
}

const THREADS: usize = 2;
/// Files that wait to be used again, at most ...
const MOST: usize = 256;
/// ... and this part of the descriptors of the process.
const PART: u64 = 32;
/// They go when the disk has had nothing to do for so long.
const IDLE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    async fn settled(files: &Files) {
        // Two threads: each of them is at a job of ours once both have come back.
        for _ in 0..4 {
            let pause = || {
                std::thread::sleep(Duration::from_millis(5));
                Ok(())
            };
            finished(files.run(pause).await).unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_used_again_is_empty_and_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::start(dir.path()).unwrap();
        let file = files.open(dir.path()).unwrap();
        file.write_all_at(b"of the last client", 0).unwrap();
        let inode = file.metadata().unwrap().ino();
        drop(file);
        settled(&files).await;
        let again = files.open(dir.path()).unwrap();
        let meta = again.metadata().unwrap();
        assert_eq!((meta.ino(), meta.len(), meta.nlink(), meta.mode() & 0o777), (inode, 0, 0, 0o600));
        assert_ne!(files.open(dir.path()).unwrap().metadata().unwrap().ino(), inode);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_file_of_another_folder_is_not_used() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = Files::start(dir.path()).unwrap();
        drop(files.open(dir.path()).unwrap());
        settled(&files).await;
        let another = files.open(other.path()).unwrap();
        assert_eq!(lock(&files.spare).files.len(), 1);
        drop(another);
        settled(&files).await;
        let spare = lock(&files.spare);
        assert_eq!((spare.files.len(), spare.dir.as_path()), (1, other.path()));
    }

    #[tokio::test]
    async fn they_are_bounded_and_go_when_the_disk_has_nothing_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::start(dir.path()).unwrap();
        let open: Vec<_> = (0..files.most + 10).map(|_| files.open(dir.path()).unwrap()).collect();
        drop(open);
        settled(&files).await;
        assert_eq!(lock(&files.spare).files.len(), files.most);
        assert!(files.most > 0 && files.most <= MOST);
        tokio::time::sleep(IDLE * 2 + Duration::from_millis(500)).await;
        assert_eq!(lock(&files.spare).files.len(), 0);
    }

    #[tokio::test]
    async fn one_that_is_still_read_is_not_given_to_anybody_else() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::start(dir.path()).unwrap();
        let file = Arc::new(files.open(dir.path()).unwrap());
        let read = Arc::clone(&file);
        drop(file);
        settled(&files).await;
        assert!(lock(&files.spare).files.is_empty());
        drop(read);
        settled(&files).await;
        assert_eq!(lock(&files.spare).files.len(), 1);
    }

    #[test]
    fn a_file_system_without_tmpfile_leaves_no_name_either() {
        let dir = tempfile::tempdir().unwrap();
        let file = named_then_unlinked(dir.path()).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
