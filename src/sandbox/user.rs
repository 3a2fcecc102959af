//! From root to the user of `server.user`, for good.
//!
//! Threat: exposure. What root could read and bind has been read and bound; nothing afterwards needs more than Palisade's own
//! user. Names are looked up in `/etc/passwd` and `/etc/group` without the C library's switch, which a static binary does not
//! have; where there is no such file, as in an empty image, the user is a number.

use std::fs;

use rustix::{
    io::Errno,
    process::{Gid, Uid, geteuid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use crate::accept::Problem;

/// Who to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    user: u32,
    group: u32,
    /// Groups beside it, such as the one that may connect to Puma's sockets.
    others: Vec<u32>,
}

/// Becomes the user. Only while the process has one thread: to the kernel each thread is somebody of its own.
pub(super) fn become_user(name: &str) -> Result<(), Problem> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    let identity = Identity::find(name, &passwd, &group)
        .ok_or_else(|| problem("there is no such user", "make one (useradd --system), or write its numbers as \"65532:65532\""))?;
    if geteuid().as_raw() == identity.user {
        return Ok(());
    }
    identity.assume().map_err(|errno| problem(errno, "start as root, or leave server.user empty and start as the user itself"))
}

impl Identity {
    fn find(name: &str, passwd: &str, groups: &str) -> Option<Self> {
        let numbers = name.split_once(':').unwrap_or((name, name));
        if let (Ok(user), Ok(group)) = (numbers.0.parse(), numbers.1.parse()) {
            return Some(Identity { user, group, others: vec![group] });
        }
        let mut of_user = records(passwd).find(|fields| fields.first() == Some(&name))?.into_iter().skip(2);
        let (user, group) = (of_user.next()?.parse().ok()?, of_user.next()?.parse().ok()?);
        let is_member = |fields: &Vec<&str>| fields.get(3).is_some_and(|members| members.split(',').any(|member| member.trim() == name));
        let of = records(groups).filter(is_member).filter_map(|fields| fields.get(2)?.parse().ok());
        let mut others: Vec<u32> = std::iter::once(group).chain(of).collect();
        others.dedup();
        Some(Identity { user, group, others })
    }

    /// Groups first: without root's rights they could not be given up any more.
    fn assume(&self) -> Result<(), Errno> {
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
        let others: Vec<Gid> = self.others.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&others)?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)
    }
}

fn records(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

fn problem(cause: impl std::fmt::Display, remedy: &str) -> Problem {
    Problem { place: "server.user".to_owned(), cause: cause.to_string(), remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\npalisade:x:998:997::/:/usr/sbin/nologin\nbroken:x:one:two::/:\n";
    const GROUP: &str = "root:x:0:\npuma:x:500:deploy,palisade\nadm:x:4:syslog\n";

    #[test]
    fn a_user_has_its_number_its_group_and_the_groups_that_name_it() {
        let found = Identity::find("palisade", PASSWD, GROUP).unwrap();
        assert_eq!(found, Identity { user: 998, group: 997, others: vec![997, 500] });
        assert_eq!(Identity::find("nobody-here", PASSWD, GROUP), None);
        assert_eq!(Identity::find("broken", PASSWD, GROUP), None);
    }

    #[test]
    fn numbers_need_no_files() {
        assert_eq!(Identity::find("65532", "", ""), Some(Identity { user: 65532, group: 65532, others: vec![65532] }));
        assert_eq!(Identity::find("65532:100", "", ""), Some(Identity { user: 65532, group: 100, others: vec![100] }));
        assert_eq!(Identity::find("palisade:100", PASSWD, GROUP), None);
    }
}
