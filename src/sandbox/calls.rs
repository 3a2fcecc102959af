//! The system calls that a serving Palisade makes, and no others (seccomp).
//!
//! Threat: exposure, should a parser of ours or a library ever be made to run an attacker's code: no program is started, no
//! process is looked into, no memory becomes executable, no socket listens, no namespace, mount, module or key is touched. What
//! is not in the list answers ENOSYS, as on an old kernel: glibc then takes the older call that is in the list (`clone` for
//! `clone3`, whose flags a filter cannot see), where an EPERM would end it.

use std::collections::BTreeMap;

use libc::{AF_INET, AF_INET6, AF_UNIX, PROT_EXEC};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is, SeccompCondition as Condition, SeccompFilter,
    SeccompRule as Rule, TargetArch,
};

/// The filter as the kernel takes it.
pub(super) fn filter() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<Rule>> = EVERYWHERE.iter().chain(OLDER).map(|call| (*call, Vec::new())).collect();
    for (call, argument, values) in CHOICES {
        let of = values.iter().map(|value| one(*argument, Is::Eq, *value));
        rules.insert(*call, of.collect::<Result<_, _>>()?);
    }
    for (call, argument, mask, value) in MASKS {
        rules.insert(*call, vec![one(*argument, Is::MaskedEq(*mask), *value)?]);
    }
    rules.insert(libc::SYS_tgkill, vec![one(0, Is::Eq, u64::from(std::process::id()))?]);
    // How much a thread stands back: its own affair.
    for call in [libc::SYS_getpriority, libc::SYS_setpriority] {
        let of = |argument, value| Condition::new(argument, Width::Dword, Is::Eq, value);
        rules.insert(call, vec![Rule::new(vec![of(0, libc::PRIO_PROCESS.into())?, of(1, 0)?])?]);
    }
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()), SeccompAction::Allow, arch)?.try_into()
}

fn one(argument: u8, is: Is, value: u64) -> Result<Rule, BackendError> {
    let width = if matches!(is, Is::MaskedEq(_)) { Width::Qword } else { Width::Dword };
    Rule::new(vec![Condition::new(argument, width, is, value)?])
}

/// Calls that are allowed with some values of one argument.
const CHOICES: &[(i64, u8, &[u64])] = &[
    (libc::SYS_socket, 0, &[AF_UNIX as u64, AF_INET as u64, AF_INET6 as u64]),
    (libc::SYS_socketpair, 0, &[AF_UNIX as u64]),
    // Names of threads and of memory.
    (libc::SYS_prctl, 0, &[libc::PR_SET_NAME as u64, libc::PR_GET_NAME as u64, libc::PR_SET_VMA as u64]),
    (libc::SYS_ioctl, 1, &[libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD, libc::TCGETS, libc::TIOCGWINSZ]),
    // Read, not set.
    (libc::SYS_prlimit64, 2, &[0]),
];

/// Calls that are allowed while the bits of one argument that are in the mask have this value.
const MASKS: &[(i64, u8, u64, u64)] = &[
    // Threads, not processes.
    (libc::SYS_clone, 0, libc::CLONE_THREAD as u64, libc::CLONE_THREAD as u64),
    // Nothing that was written is ever executed.
    (libc::SYS_mmap, 2, PROT_EXEC as u64, 0),
    (libc::SYS_mprotect, 2, PROT_EXEC as u64, 0),
];

/// Calls that are allowed as they come. What they may reach is Landlock's part.
const EVERYWHERE: &[i64] = &[
    // Sockets that are open, and new ones to Puma. No bind, no listen: every listener is open by now.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Descriptors and files.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads and signals of our own.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    // What the process is and may use.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_getdents,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];

#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_intruder_would_call_is_in_no_list() {
        let allowed: Vec<i64> = EVERYWHERE.iter().chain(OLDER).copied().collect();
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_memfd_create,
            libc::SYS_keyctl,
            libc::SYS_kexec_load,
            libc::SYS_kill,
            libc::SYS_clone3,
            libc::SYS_pidfd_getfd,
        ] {
            assert!(!allowed.contains(&call), "{call}");
        }
    }

    #[test]
    fn no_call_stands_in_two_lists() {
        let mut all: Vec<i64> = EVERYWHERE.iter().chain(OLDER).copied().collect();
        all.extend(CHOICES.iter().map(|choice| choice.0));
        all.extend(MASKS.iter().map(|mask| mask.0));
        let before = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), before);
    }

    #[test]
    fn the_filter_is_one_that_the_kernel_takes() {
        let program = filter().unwrap();
        assert!((100..4096).contains(&program.len()), "{} instructions", program.len());
    }
}
