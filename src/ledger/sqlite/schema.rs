// @generated automatically by Diesel CLI.

diesel::table! {
    points_credits (payment_id) {
        payment_id -> Text,
        user_id -> Text,
        points -> BigInt,
        credited_at -> Text,
        verified_at -> Nullable<Text>,
        state -> Text,
    }
}
