//! Who may connect: names and numbers of the allow list, resolved to numbers.

use std::ops::Range;

use nix::unistd::{Group, User};
use toml::{Spanned, Value};

use super::raw::RawAccess;
use crate::document::Document;
use crate::limits::ACCESS_MAX;

/// Peers with one of these user ids, or a member of one of these groups, may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// User ids, ascending, each once.
    pub uids: Vec<u32>,
    /// Group ids, ascending, each once.
    pub gids: Vec<u32>,
}

pub(super) fn check(raw: &RawAccess, document: &mut Document<'_>) -> Access {
    let uids = match &raw.users {
        Some(users) => ids(users, "access.users", document, "user", |name| {
            User::from_name(name).map(|user| user.map(|user| user.uid.as_raw()))
        }),
        None => vec![0, nix::unistd::geteuid().as_raw()],
    };
    let gids = match &raw.groups {
        Some(groups) => ids(groups, "access.groups", document, "group", |name| {
            Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw()))
        }),
        None => Vec::new(),
    };
    Access { uids: sorted(uids), gids: sorted(gids) }
}

fn sorted(mut ids: Vec<u32>) -> Vec<u32> {
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn ids(
    list: &Spanned<Vec<Spanned<Value>>>,
    field: &str,
    document: &mut Document<'_>,
    what: &str,
    look_up: impl Fn(&str) -> nix::Result<Option<u32>>,
) -> Vec<u32> {
    if list.get_ref().len() > ACCESS_MAX {
        let rule = format!("must have at most {ACCESS_MAX} entries");
        document.problem(field, Some(list.span()), rule);
        return Vec::new();
    }
    let mut ids = Vec::new();
    for (index, entry) in list.get_ref().iter().enumerate() {
        match id(entry.get_ref(), what, &look_up) {
            Ok(id) => ids.push(id),
            Err(rule) => {
                let span: Range<usize> = entry.span();
                document.problem(format!("{field}[{index}]"), Some(span), rule);
            }
        }
    }
    ids
}

fn id(
    entry: &Value,
    what: &str,
    look_up: impl Fn(&str) -> nix::Result<Option<u32>>,
) -> Result<u32, String> {
    // The last number means "nobody" to the kernel.
    let number = |number: i64| {
        u32::try_from(number)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| format!("must be 0 to {} as a {what} id, is {number}", u32::MAX - 1))
    };
    match entry {
        Value::Integer(id) => number(*id),
        Value::String(name) => match look_up(name) {
            Ok(Some(id)) => Ok(id),
            Ok(None) => match name.parse::<i64>() {
                Ok(id) => number(id),
                Err(_) => Err(format!("must be a known {what}, there is no {what} {name:?}")),
            },
            Err(error) => Err(format!("{what} {name:?} could not be looked up: {error}")),
        },
        other => Err(format!("must be a {what}'s name or id, is {}", other.type_str())),
    }
}
