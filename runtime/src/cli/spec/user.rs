//! `user[:group]` to numbers, through the container's own passwd and group.

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    User(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    Group(String),
    #[error("uids and gids must be in range 0-2147483647, not {0}")]
    Range(String),
}

/// Who a process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessUser {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub home: String,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Resolves `spec` (root where empty) by the texts of the two databases.
pub fn resolve(spec: &str, passwd: &str, group: &str) -> Result<ProcessUser, UserError> {
    let (user, group_name) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = id(user)?;
    let entry = passwd
        .lines()
        .filter_map(passwd_line)
        .find(|entry| entry.name == user || number == Some(entry.uid));
    let (uid, gid, name, home) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid, entry.name, entry.home),
        (None, Some(uid)) => (uid, 0, "", ""),
        (None, None) => return Err(UserError::User(user.to_owned())),
    };
    let home = if home.is_empty() {
        default_home(uid)
    } else {
        home
    }
    .to_owned();
    let groups = || group.lines().filter_map(group_line);
    let Some(group_name) = group_name else {
        let member = |entry: &Group<'_>| {
            !name.is_empty() && entry.members.split(',').any(|member| member.trim() == name)
        };
        let mut additional_gids: Vec<u32> =
            groups().filter(member).map(|entry| entry.gid).collect();
        additional_gids.retain(|additional| *additional != gid);
        additional_gids.sort_unstable();
        additional_gids.dedup();
        return Ok(ProcessUser {
            uid,
            gid,
            additional_gids,
            home,
        });
    };
    let number = id(group_name)?;
    let found = groups().find(|entry| entry.name == group_name || number == Some(entry.gid));
    let gid = found.map(|entry| entry.gid).or(number);
    let gid = gid.ok_or_else(|| UserError::Group(group_name.to_owned()))?;
    Ok(ProcessUser {
        uid,
        gid,
        additional_gids: Vec::new(),
        home,
    })
}

fn default_home(uid: u32) -> &'static str {
    if uid == 0 { "/root" } else { "/" }
}

fn id(text: &str) -> Result<Option<u32>, UserError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<i32>() {
        Ok(id) => Ok(Some(id.unsigned_abs())),
        Err(_) => Err(UserError::Range(text.to_owned())),
    }
}

fn passwd_line(line: &str) -> Option<Passwd<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(Passwd {
        name,
        uid,
        gid,
        home: fields.nth(1).unwrap_or_default(),
    })
}

fn group_line(line: &str) -> Option<Group<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some(Group {
        name,
        gid,
        members: fields.next().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# odd\nweb:x:33:34::/srv:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,web\nweb:x:34:web\nlog:x:40:\n";

    fn user(uid: u32, gid: u32, additional_gids: &[u32], home: &str) -> ProcessUser {
        let additional_gids = additional_gids.to_vec();
        ProcessUser {
            uid,
            gid,
            additional_gids,
            home: home.to_owned(),
        }
    }

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        for (spec, expected) in [
            ("", user(0, 0, &[10], "/root")),
            ("web", user(33, 34, &[10], "/srv")),
            ("33", user(33, 34, &[10], "/srv")),
            ("web:log", user(33, 40, &[], "/srv")),
            ("web:77", user(33, 77, &[], "/srv")),
            ("1000", user(1000, 0, &[], "/")),
            ("1000:1001", user(1000, 1001, &[], "/")),
        ] {
            assert_eq!(resolve(spec, PASSWD, GROUP), Ok(expected), "{spec}");
        }
        assert_eq!(resolve("", "", ""), Ok(user(0, 0, &[], "/root")));
    }

    #[test]
    fn who_is_not_there_is_named() {
        assert_eq!(
            resolve("nobody", PASSWD, GROUP),
            Err(UserError::User("nobody".into()))
        );
        assert_eq!(
            resolve("web:x", PASSWD, GROUP),
            Err(UserError::Group("x".into()))
        );
        assert_eq!(
            resolve("4294967295", "", ""),
            Err(UserError::Range("4294967295".into()))
        );
    }
}
