//! Whose mailbox an INVITE is for, and who calls.

use crate::base::config::Diversion;
use crate::sip::header::{Diverted, NameAddr, diversions, history};
use crate::sip::message::Request;
use crate::sip::names::Name;
use crate::sip::uri::Uri;

/// Where a call is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The mailbox's or test extension's number.
    pub number: String,
    /// What said so, for the log: `Diversion`, `History-Info`, `Request-URI`, `To` or `hunt group`.
    pub header: &'static str,
    /// The whole URI in there.
    pub uri: Uri,
    /// The number that was dialled: the Request-URI's user part; empty when it has none.
    pub called: String,
    /// Why the call was diverted, in RFC 5806's words; empty when it was not.
    pub diversion_reason: String,
}

impl Target {
    /// True when the call was diverted from the mailbox's owner.
    pub fn is_diverted(&self) -> bool {
        matches!(self.header, "Diversion" | "History-Info")
    }
}

/// Who calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The number or user part; empty when anonymous.
    pub number: String,
    /// The display name, or empty.
    pub name: String,
}

/// Finds the target: Diversion (RFC 5806), else History-Info (RFC 7044), else the Request-URI, else
/// To.
///
/// Of several diversions `which` counts. An entry that names nobody is passed over. `None` when
/// nothing names anybody.
pub fn target(request: &Request, which: Diversion) -> Option<Target> {
    let called = request.uri().ok().and_then(|uri| uri.user()).unwrap_or_default();
    // RFC 5806: the most recent diversion stands first.
    let diverted: Vec<_> = request.headers.all(&Name::Diversion).flat_map(|v| diversions(v)).collect();
    let found = pick(diverted.iter(), which).map(|found| (found, "Diversion"));
    let found = found.or_else(|| {
        // RFC 7044: the oldest target stands first; the last one is the Request-URI itself.
        let targets: Vec<_> = request.headers.all(&Name::HistoryInfo).flat_map(|v| history(v)).collect();
        let earlier = targets.split_last().map_or(&[][..], |(_, earlier)| earlier);
        pick(earlier.iter().rev(), which).map(|found| (found, "History-Info"))
    });
    let undiverted = |uri: Uri| Some((user_of(&uri)?, uri, String::new()));
    let found = found.or_else(|| Some((undiverted(request.uri().ok()?)?, "Request-URI")));
    let found = found.or_else(|| Some((undiverted(request.to().ok()?.uri)?, "To")));
    let ((number, uri, diversion_reason), header) = found?;
    Some(Target { number, header, uri, called, diversion_reason })
}

/// The number, URI and reason of the diversion that counts, most recent first.
fn pick<'a>(
    diverted: impl DoubleEndedIterator<Item = &'a Diverted>,
    which: Diversion,
) -> Option<(String, Uri, String)> {
    let named = |entry: &Diverted| {
        let number = user_of(&entry.address.uri)?;
        let reason = entry.reason.clone().unwrap_or_else(|| "unknown".into());
        Some((number, entry.address.uri.clone(), reason))
    };
    let mut named = diverted.filter_map(named);
    match which {
        Diversion::Top => named.next(),
        Diversion::Bottom => named.next_back(),
    }
}

/// Whom a URI names, if anybody.
fn user_of(uri: &Uri) -> Option<String> {
    uri.user().filter(|user| !user.is_empty())
}

/// Reads the caller from From. `anonymous` (RFC 3323 §4.1.1.3) is nobody.
pub fn caller(request: &Request) -> Caller {
    let Ok(NameAddr { display, uri, .. }) = request.from() else {
        return Caller::default();
    };
    let number = uri.user().filter(|user| !user.eq_ignore_ascii_case("anonymous")).unwrap_or_default();
    Caller { number, name: display.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::names::Method;

    fn invite(fields: &[(Name, &str)]) -> Request {
        let mut request = Request::new(Method::Invite, "sip:5000@127.0.0.1");
        for (name, value) in fields {
            request.headers.push(name.clone(), value.to_string());
        }
        request
    }

    fn found(fields: &[(Name, &str)], which: Diversion) -> (String, &'static str, String) {
        let target = target(&invite(fields), which).unwrap();
        assert_eq!(target.called, "5000");
        (target.number, target.header, target.diversion_reason)
    }

    /// Goal: without diversion the Request-URI decides. Method: a bare INVITE.
    #[test]
    fn an_undiverted_call_is_for_the_request_uri() {
        assert_eq!(found(&[], Diversion::Bottom), ("5000".into(), "Request-URI", String::new()));
    }

    /// Goal: bottom is the first diversion, top the latest (um-behaviour §1.3.5). Method: two in
    /// one field and one in a field below.
    #[test]
    fn stacked_diversions_are_read_from_the_configured_end() {
        let fields = [
            (Name::Diversion, "<tel:+1-1003>;reason=no-answer, <sip:1002@pbx>;reason=user-busy"),
            (Name::Diversion, "\"Ann, first\" <sip:1001@pbx>;reason=unconditional"),
        ];
        let bottom = found(&fields, Diversion::Bottom);
        assert_eq!(bottom, ("1001".into(), "Diversion", "unconditional".into()));
        let top = found(&fields, Diversion::Top);
        assert_eq!(top, ("+11003".into(), "Diversion", "no-answer".into()));
    }

    /// Goal: History-Info's last entry is ourselves. Method: RFC 7044's form with causes.
    #[test]
    fn history_names_the_party_before_us() {
        let fields = [(
            Name::HistoryInfo,
            "<sip:1001@pbx?Reason=SIP%3Bcause%3D486>;index=1, \
             <sip:1002@pbx?Reason=SIP%3Bcause%3D408>;index=1.1, <sip:5000@vm>;index=1.1.1",
        )];
        assert_eq!(found(&fields, Diversion::Bottom), ("1001".into(), "History-Info", "user-busy".into()));
        assert_eq!(found(&fields, Diversion::Top), ("1002".into(), "History-Info", "no-answer".into()));
        let alone = [(Name::HistoryInfo, "<sip:5000@vm>;index=1")];
        assert_eq!(found(&alone, Diversion::Bottom).1, "Request-URI");
    }

    /// Goal: a diversion that names nobody does not lose the call. Method: a URI without user.
    #[test]
    fn a_diversion_without_a_user_is_passed_over() {
        let fields = [(Name::Diversion, "<sip:pbx.example>;reason=no-answer")];
        assert_eq!(found(&fields, Diversion::Bottom).1, "Request-URI");
    }

    /// Goal: a Request-URI that names nobody leaves it to To. Method: with and without a user in To.
    #[test]
    fn without_a_user_in_the_request_uri_to_decides() {
        let mut request = Request::new(Method::Invite, "sip:127.0.0.1");
        assert_eq!(target(&request, Diversion::Bottom), None);
        request.headers.push(Name::To, "<sip:1001@127.0.0.1>");
        let found = target(&request, Diversion::Bottom).unwrap();
        assert_eq!((found.number.as_str(), found.header, found.called.as_str()), ("1001", "To", ""));
    }

    /// Goal: names and anonymity. Method: three forms of From.
    #[test]
    fn the_caller_is_read_from_from() {
        let from = |value: &str| caller(&invite(&[(Name::From, value)]));
        let ann = Caller { number: "2000".into(), name: "Ann \"A\" B".into() };
        assert_eq!(from("\"Ann \\\"A\\\" B\" <sip:2000@pbx>;tag=1"), ann);
        assert_eq!(from("tel:+49-30-1;tag=1").number, "+49301");
        assert_eq!(from("<sip:anonymous@anonymous.invalid>;tag=1"), Caller::default());
    }
}
