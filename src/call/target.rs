//! Whose mailbox an INVITE is for, and who calls.

use crate::base::config::Diversion;
use crate::sip::header::{Diverted, NameAddr, diversions, history};
use crate::sip::message::Request;
use crate::sip::names::Name;

/// Where a call is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The mailbox's or test extension's number.
    pub number: String,
    /// The header field that said so, for the log: `Diversion`, `History-Info` or `Request-URI`.
    pub header: &'static str,
    /// The number that was dialled: the Request-URI's user part; empty when it has none.
    pub called: String,
    /// Why the call was diverted, in RFC 5806's words; empty when it was not.
    pub diversion_reason: String,
}

/// Who calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The number or user part; empty when anonymous.
    pub number: String,
    /// The display name, or empty.
    pub name: String,
}

/// Finds the target: Diversion (RFC 5806), else History-Info (RFC 7044), else the Request-URI.
///
/// Of several diversions `which` counts. An entry that names nobody is passed over. `None` when
/// nothing names anybody.
pub fn target(request: &Request, which: Diversion) -> Option<Target> {
    let called = request.uri().ok().and_then(|uri| uri.user()).unwrap_or_default();
    // RFC 5806: the most recent diversion stands first.
    let diverted: Vec<_> = request.headers.all(&Name::Diversion).flat_map(|v| diversions(v)).collect();
    let found = pick(diverted.iter(), which).map(|(number, reason)| (number, "Diversion", reason));
    let found = found.or_else(|| {
        // RFC 7044: the oldest target stands first; the last one is the Request-URI itself.
        let targets: Vec<_> = request.headers.all(&Name::HistoryInfo).flat_map(|v| history(v)).collect();
        let earlier = targets.split_last().map_or(&[][..], |(_, earlier)| earlier);
        pick(earlier.iter().rev(), which).map(|(number, reason)| (number, "History-Info", reason))
    });
    let found = found.or_else(|| {
        let number = (!called.is_empty()).then(|| called.clone())?;
        Some((number, "Request-URI", String::new()))
    });
    found.map(|(number, header, diversion_reason)| Target { number, header, called, diversion_reason })
}

/// The number and reason of the diversion that counts, most recent first.
fn pick<'a>(
    diverted: impl DoubleEndedIterator<Item = &'a Diverted>,
    which: Diversion,
) -> Option<(String, String)> {
    let named = |entry: &Diverted| {
        let number = entry.address.uri.user().filter(|user| !user.is_empty())?;
        Some((number, entry.reason.clone().unwrap_or_else(|| "unknown".into())))
    };
    let mut named = diverted.filter_map(named);
    match which {
        Diversion::Top => named.next(),
        Diversion::Bottom => named.next_back(),
    }
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
