use super::*;

const RULES: SessionRules = SessionRules { session_expires_s: 1800, min_se_s: 90 };

fn request(fields: &[(Name, &str)]) -> Request {
    let mut request = Request::new(Method::Invite, "sip:x");
    for (name, value) in fields {
        request.headers.push(name.clone(), (*value).to_owned());
    }
    request
}

fn negotiate(fields: &[(Name, &str)]) -> Negotiated {
    answer(&request(fields), &RULES).unwrap().unwrap()
}

fn response_fields(negotiated: Negotiated) -> (String, bool) {
    let mut response = Response::new(200, "OK");
    negotiated.write(&mut response);
    let value = response.headers.first(&Name::SessionExpires).unwrap();
    (String::from_utf8_lossy(value).into_owned(), response.headers.has_token(&Name::Require, "timer"))
}

const TIMER: (Name, &str) = (Name::Supported, "100rel, timer");

/// Goal: who refreshes follows table 2 of RFC 4028; Require only if the UAC knows session timers.
/// Method: each row.
#[test]
fn the_refresher_follows_table_2() {
    let expires = |value| (Name::SessionExpires, value);
    let rows = [
        (vec![expires("600")], "600;refresher=uas", false),
        (vec![TIMER, expires("600")], "600;refresher=uac", true),
        (vec![TIMER, expires("600;refresher=uac")], "600;refresher=uac", true),
        (vec![TIMER, expires("600;refresher=uas")], "600;refresher=uas", true),
        (vec![], "1800;refresher=uas", false),
        (vec![TIMER], "1800;refresher=uac", true),
    ];
    for (fields, expected, require) in rows {
        assert_eq!(response_fields(negotiate(&fields)), (expected.to_owned(), require), "{fields:?}");
    }
}

/// Goal: the interval is never raised above what was asked, never below Min-SE (RFC 4028 §9).
/// Method: more than ours, less than ours, a large Min-SE.
#[test]
fn the_interval_is_lowered_to_ours_but_not_below_min_se() {
    let asked = |value| negotiate(&[TIMER, (Name::SessionExpires, value)]).interval_s;
    assert_eq!((asked("7200"), asked("90"), asked("4294967296")), (1800, 90, 1800));
    let min_se = negotiate(&[TIMER, (Name::SessionExpires, "7200"), (Name::MinSe, "3600")]);
    assert_eq!((min_se.interval_s, min_se.min_se_s), (3600, 3600));
}

/// Goal: too small an interval is refused with 422 and Min-SE, unless the UAC does not know what
/// that means (RFC 4028 §6, §9). Method: 60 s against 90 s.
#[test]
fn too_small_an_interval_gets_422() {
    let small = (Name::SessionExpires, "60");
    let refusal = answer(&request(&[TIMER, small.clone()]), &RULES).unwrap_err();
    assert_eq!(refusal.status, 422);
    assert_eq!(refusal.headers.first(&Name::MinSe).unwrap(), "90");
    assert_eq!(read_422(&refusal), Some(90));
    assert_eq!(negotiate(&[small]).interval_s, 90);
}

/// Goal: 0 turns session timers off. Method: answer and offer.
#[test]
fn zero_turns_session_timers_off() {
    let off = SessionRules { session_expires_s: 0, ..RULES };
    assert_eq!(answer(&request(&[TIMER, (Name::SessionExpires, "600")]), &off), Ok(None));
    let mut invite = request(&[]);
    offer(&mut invite, &off);
    assert!(invite.headers.is_empty());
}

/// Goal: our INVITE asks, the 2xx decides (RFC 4028 §7.1, §7.2). Method: with, without and with an
/// incomplete Session-Expires.
#[test]
fn our_offer_is_decided_by_the_2xx() {
    let mut invite = request(&[]);
    offer(&mut invite, &RULES);
    assert_eq!(invite.headers.first(&Name::SessionExpires).unwrap(), "1800");
    assert_eq!(invite.headers.first(&Name::MinSe).unwrap(), "90");
    let mut ok = Response::new(200, "OK");
    assert_eq!(read_answer(&invite, &ok), None);
    ok.headers.push(Name::SessionExpires, "300;refresher=uas");
    ok.headers.push(Name::Allow, "INVITE, ACK, UPDATE");
    let agreed = read_answer(&invite, &ok).unwrap();
    assert_eq!((agreed.interval_s, agreed.refresher), (300, Refresher::Uas));
    assert!(agreed.peer_allows_update);
    ok.headers.set(Name::SessionExpires, "300");
    assert_eq!(read_answer(&invite, &ok).unwrap().refresher, Refresher::Uac);
}

/// Goal: the refresher refreshes at half the interval, and ends the call min(32 s, a third) before
/// its end (RFC 4028 §10). Method: 1800 s and 90 s, fake clock.
#[test]
fn the_refresher_refreshes_at_half_time() {
    let now = crate::base::clock::now();
    for (interval, half, end) in [("1800", 900, 1768), ("90", 45, 60)] {
        let agreed = negotiate(&[(Name::SessionExpires, interval)]);
        let mut timer = SessionTimer::uas(now, agreed);
        let (half, end) = (now + Duration::from_secs(half), now + Duration::from_secs(end));
        assert_eq!(timer.poll_timeout(), Some(half));
        assert_eq!(timer.handle_timeout(half), Some(SessionEvent::Refresh));
        assert_eq!(timer.handle_timeout(half), None);
        assert_eq!(timer.poll_timeout(), Some(end));
        assert_eq!(timer.handle_timeout(end), Some(SessionEvent::Expired));
        assert_eq!((timer.poll_timeout(), timer.handle_timeout(end)), (None, None));
    }
}

/// Goal: the side that waits only ends the call. Method: the UAC refreshes.
#[test]
fn the_waiting_side_only_expires() {
    let now = crate::base::clock::now();
    let timer = SessionTimer::uas(now, negotiate(&[TIMER]));
    assert_eq!(timer.poll_timeout(), Some(now + Duration::from_secs(1768)));
}

/// Goal: requests inside the dialog keep the refresher, named by the roles of their own
/// transaction (RFC 4028 §7.4). Method: the same session from both ends.
#[test]
fn requests_inside_the_dialog_keep_the_refresher() {
    let now = crate::base::clock::now();
    let agreed = negotiate(&[TIMER, (Name::Allow, "UPDATE")]);
    let offered = |timer: &SessionTimer| {
        let mut request = request(&[]);
        timer.offer(&mut request);
        String::from_utf8_lossy(request.headers.first(&Name::SessionExpires).unwrap()).into_owned()
    };
    assert_eq!(offered(&SessionTimer::uac(now, agreed)), "1800;refresher=uac");
    assert_eq!(offered(&SessionTimer::uas(now, agreed)), "1800;refresher=uas");
    assert_eq!(SessionTimer::uas(now, agreed).refresh_method(), Method::Update);
    let no_update = Negotiated { peer_allows_update: false, ..agreed };
    assert_eq!(SessionTimer::uas(now, no_update).refresh_method(), Method::Invite);
}

/// Goal: each refresh starts the session anew, also with a peer that does not know session timers
/// and so names no interval. Method: refresh at half time, answered without and with
/// Session-Expires.
#[test]
fn a_refresh_starts_the_session_anew() {
    let now = crate::base::clock::now();
    let seconds = |count| now + Duration::from_secs(count);
    let mut timer = SessionTimer::uas(now, negotiate(&[]));
    assert_eq!(timer.handle_timeout(seconds(900)), Some(SessionEvent::Refresh));
    let mut refresh = request(&[]);
    timer.offer(&mut refresh);
    let mut ok = Response::new(200, "OK");
    timer.renew(seconds(900), &refresh, &ok);
    assert_eq!(timer.poll_timeout(), Some(seconds(1800)));
    assert_eq!(timer.handle_timeout(seconds(1800)), Some(SessionEvent::Refresh));
    ok.headers.push(Name::SessionExpires, "600;refresher=uas");
    timer.renew(seconds(1800), &refresh, &ok);
    assert_eq!(timer.poll_timeout(), Some(seconds(1800 + 568)), "now the peer refreshes");
}
