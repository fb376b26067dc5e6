//! Steps 3 and 4: pilots, and how numbers look in a dial plan.

use super::decision::Refused;
use crate::base::config::{DialPlan, UriType};
use crate::sip::header::NameAddr;
use crate::sip::uri::{Host, Uri};

/// Digits of the longest telephone number (ITU-T E.164 §6.2).
const E164_DIGITS_MAX: usize = 15;

/// How well a pilot fits what was called: user and host before user before any.
pub(super) fn pilot_rank(pilot: &str, called: Option<&Uri>) -> Option<u8> {
    if pilot.is_empty() {
        return Some(0);
    }
    let called = called?;
    let user = called.user()?;
    if let Some((pilot_user, pilot_host)) = pilot.rsplit_once('@') {
        let host = called.as_sip()?.host.to_string();
        return (bare(pilot_user) == bare(&user) && pilot_host.eq_ignore_ascii_case(&host)).then_some(2);
    }
    (bare(pilot) == bare(&user)).then_some(1)
}

/// A telephone number without visual separators (RFC 3966 §5.1.1); any other text as it is.
fn bare(user: &str) -> String {
    let number: String = user.chars().filter(|c| !"-.() ".contains(*c)).collect();
    if digits(&number).is_some() { number } else { user.to_owned() }
}

/// The digits of a number, with or without a leading `+`; `None` for anything else.
fn digits(number: &str) -> Option<&str> {
    let digits = number.strip_prefix('+').unwrap_or(number);
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(digits)
}

/// True for a caller who is nobody (RFC 3323 §4.1.1.3).
pub(super) fn is_anonymous(from: &NameAddr) -> bool {
    let invalid =
        |host: &Host| matches!(host, Host::Name(name) if name.eq_ignore_ascii_case("anonymous.invalid"));
    from.uri.user().is_some_and(|user| user.eq_ignore_ascii_case("anonymous"))
        || from.uri.as_sip().is_some_and(|uri| invalid(&uri.host))
}

/// Whose number it is: the length of an extension binds those that name a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The caller's: an extension or any number of the world.
    Caller,
    /// A mailbox's.
    Mailbox,
    /// What was dialled, when something else names the mailbox.
    Called,
}

/// Checks one URI against the plan.
pub(super) fn check(plan: &DialPlan, header: &str, uri: &Uri, whose: Whose) -> Result<(), Refused> {
    let number = uri.user().map(|user| bare(&user)).unwrap_or_default();
    let fits = match plan.uri_type {
        UriType::Any => return Ok(()),
        UriType::TelExtn => digits(&number).is_some(),
        UriType::E164 => is_e164(&number),
        UriType::SipUri => uri.as_sip().is_some_and(|uri| uri.user.is_some()),
    };
    let invalid = |rule, takes: String| {
        let uri = without_password(uri);
        let plan = &plan.name;
        let why =
            format!("SIP URI {uri:?} in {header} is not valid for dial plan {plan:?}, which takes {takes}");
        Refused::new(rule, 404, why)
    };
    if !fits {
        return Err(invalid("uri_type", takes(plan.uri_type).to_owned()));
    }
    let wanted = usize::from(plan.extension_digits);
    let is_extension = plan.uri_type == UriType::TelExtn && !is_e164(&number);
    if whose == Whose::Mailbox && is_extension && wanted != 0 && digits(&number).map(str::len) != Some(wanted)
    {
        return Err(invalid("extension_digits", format!("extensions of {wanted} digits")));
    }
    Ok(())
}

fn is_e164(number: &str) -> bool {
    let digits = number.strip_prefix('+').and_then(digits);
    digits.is_some_and(|d| d.len() <= E164_DIGITS_MAX && !d.starts_with('0'))
}

/// What a plan takes, for a refusal.
pub(super) fn takes(uri_type: UriType) -> &'static str {
    match uri_type {
        UriType::Any => "anything",
        UriType::TelExtn => "extensions, telephone numbers and anonymous callers",
        UriType::SipUri => "sip: URIs with a user",
        UriType::E164 => "\"+\" and up to 15 digits, and anonymous callers",
    }
}

/// RFC 3261 §19.1.1 warns of passwords in URIs; they go into no text of ours.
fn without_password(uri: &Uri) -> String {
    match uri {
        Uri::Sip(uri) => {
            let mut uri = uri.clone();
            uri.password = None;
            uri.to_string()
        }
        Uri::Tel(_) | Uri::Other { .. } => uri.to_string(),
    }
}
