// @generated automatically by Diesel CLI.

diesel::table! {
    points_adjustments (payment_id, seq) {
        payment_id -> Text,
        seq -> Integer,
        user_id -> Text,
        kind -> Text,
        points -> BigInt,
        reason -> Text,
        created_at -> Text,
    }
}

diesel::table! {
    points_credits (payment_id) {
        payment_id -> Text,
        user_id -> Text,
        points -> BigInt,
        credited_at -> Text,
        verified_at -> Nullable<Text>,
        state -> Text,
        asked_at -> Nullable<Text>,
    }
}

diesel::table! {
    points_outbox (id) {
        id -> BigInt,
        message_id -> Text,
        exchange -> Text,
        routing_key -> Text,
        key -> Nullable<Text>,
        headers -> Text,
        body -> Text,
        created_at -> Text,
        attempts -> Integer,
        next_try_at -> Nullable<Text>,
        last_error -> Nullable<Text>,
    }
}
