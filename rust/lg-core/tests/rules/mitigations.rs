// SPDX-License-Identifier: GPL-2.0

use lg_core::mitigations::{Host, Policy, Set, Wish};

fn text(policy: Policy) -> String {
    let words: Vec<_> = policy
        .words()
        .map(|(no, name)| format!("{no}{name}"))
        .collect();
    words.join(",")
}

fn decide(host: Host, parameter: &str) -> String {
    text(Policy::decide(
        &host,
        Wish::parse(parameter.as_bytes()).unwrap(),
    ))
}

/// A Host that does all there is, which no CPU asks for.
const ALL: Host = Host {
    spectre_v2: true,
    clears_buffers: true,
    clears_history: true,
    kernel_ibrs: true,
    untrains: true,
    ibpb_on_entry: true,
    ibpb_before_user: true,
};

#[test]
fn the_host_s_policy_is_ours() {
    let all = "buffers,rsb,bhb,ibrs,untrain,ibpb,vmscape";
    assert_eq!(decide(ALL, "auto"), all);
    assert_eq!(decide(Host::default(), "auto"), "");
    // Each answers to its own word of the Host's, and to no other.
    type Spoil = fn(&mut Host);
    let table: [(Spoil, &str); 7] = [
        (|host| host.clears_buffers = false, "buffers"),
        (|host| host.spectre_v2 = false, "rsb"),
        (|host| host.clears_history = false, "bhb"),
        (|host| host.kernel_ibrs = false, "ibrs"),
        (|host| host.untrains = false, "untrain"),
        (|host| host.ibpb_on_entry = false, "ibpb"),
        (|host| host.ibpb_before_user = false, "vmscape"),
    ];
    for (spoil, name) in table {
        let mut host = ALL;
        spoil(&mut host);
        let rest: Vec<_> = all.split(',').filter(|word| *word != name).collect();
        assert_eq!(decide(host, "auto"), rest.join(","));
    }
}

/// Return predictions are overwritten also on CPUs where Linux relies on SMEP: all that is known of
/// those is that they have Spectre v2.
#[test]
fn enhanced_ibrs_is_no_reason_to_keep_return_predictions() {
    let host = Host {
        spectre_v2: true,
        ..Host::default()
    };
    assert_eq!(decide(host, "auto"), "rsb");
}

#[test]
fn the_parameter_relaxes_each() {
    for (name, set) in Set::NAMES {
        let wish = Wish::parse(format!("no_{name}").as_bytes()).unwrap();
        let policy = Policy::decide(&ALL, wish);
        assert!(!policy.does(set), "{name}");
        for (other, others) in Set::NAMES {
            assert_eq!(policy.does(others), name != other);
        }
        assert!(text(policy).contains(&format!("no_{name}")));
        // What the Host does not do is not said to be relaxed.
        assert_eq!(text(Policy::decide(&Host::default(), wish)), "");
    }
    assert_eq!(
        decide(ALL, "off"),
        "no_buffers,no_rsb,no_bhb,no_ibrs,no_untrain,no_ibpb,no_vmscape"
    );
    assert_eq!(
        decide(ALL, "no_rsb,no_vmscape"),
        "buffers,no_rsb,bhb,ibrs,untrain,ibpb,no_vmscape"
    );
}

#[test]
fn the_parameter_asks_for_a_barrier() {
    assert_eq!(decide(Host::default(), "ibpb"), "ibpb");
    assert_eq!(decide(ALL, "ibpb,no_rsb"), decide(ALL, "no_rsb"));
    assert!(Wish::parse(b"ibpb").unwrap().wants_ibpb());
    assert!(!Wish::parse(b"auto").unwrap().wants_ibpb());
}

#[test]
fn nonsense_is_refused() {
    for nonsense in [
        "",
        "on",
        "rsb",
        "no_",
        "no_rbs",
        "no_rsb,",
        ",",
        "auto,no_rsb",
        "off,ibpb",
        "ibpb,no_ibpb",
    ] {
        assert_eq!(Wish::parse(nonsense.as_bytes()), None, "{nonsense:?}");
    }
}

#[test]
fn a_wish_survives_a_word_of_memory() {
    for parameter in ["auto", "off", "ibpb", "no_buffers", "no_vmscape,ibpb"] {
        let wish = Wish::parse(parameter.as_bytes()).unwrap();
        assert_eq!(Wish::from_bits(wish.bits()), wish);
    }
    assert_eq!(Wish::from_bits(0), Wish::default());
}
