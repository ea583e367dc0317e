// SPDX-License-Identifier: Apache-2.0
//
// object-add and object-del: TLS credentials, authorization, secrets (qmp.md 13).
//
// All of QEMU's object types are known by name, so that a wrong name and a type that is not built in get QEMU's two
// different answers. Members are described for the types that belong to migration; those of the others are accepted
// unread and the type is refused ("invalid object type: ...").
#pragma once

#include "protocol/qmp/schema.hpp"

namespace migrationd::qmp {

enum class ObjectType : std::uint8_t {
  acpi_generic_initiator,
  acpi_generic_port,
  authz_list,
  authz_listfile,
  authz_pam,
  authz_simple,
  can_bus,
  can_host_socketcan,
  colo_compare,
  cryptodev_backend,
  cryptodev_backend_builtin,
  cryptodev_backend_lkcf,
  cryptodev_vhost_user,
  dbus_vmstate,
  filter_buffer,
  filter_dump,
  filter_mirror,
  filter_redirector,
  filter_replay,
  filter_rewriter,
  input_barrier,
  input_linux,
  iommufd,
  iothread,
  main_loop,
  memory_backend_epc,
  memory_backend_file,
  memory_backend_memfd,
  memory_backend_ram,
  memory_backend_shm,
  pef_guest,
  pr_manager_helper,
  qtest,
  rng_builtin,
  rng_egd,
  rng_random,
  secret,
  secret_keyring,
  sev_guest,
  sev_snp_guest,
  thread_context,
  s390_pv_guest,
  throttle_group,
  tls_creds_anon,
  tls_creds_psk,
  tls_creds_x509,
  tls_cipher_suites,
  x_remote_object,
  x_vfio_user_server
};
template <>
inline constexpr auto name_table<ObjectType> = names_up_to(ObjectType::x_vfio_user_server, "ObjectType",
                                                           {"acpi-generic-initiator",
                                                            "acpi-generic-port",
                                                            "authz-list",
                                                            "authz-listfile",
                                                            "authz-pam",
                                                            "authz-simple",
                                                            "can-bus",
                                                            "can-host-socketcan",
                                                            "colo-compare",
                                                            "cryptodev-backend",
                                                            "cryptodev-backend-builtin",
                                                            "cryptodev-backend-lkcf",
                                                            "cryptodev-vhost-user",
                                                            "dbus-vmstate",
                                                            "filter-buffer",
                                                            "filter-dump",
                                                            "filter-mirror",
                                                            "filter-redirector",
                                                            "filter-replay",
                                                            "filter-rewriter",
                                                            "input-barrier",
                                                            "input-linux",
                                                            "iommufd",
                                                            "iothread",
                                                            "main-loop",
                                                            "memory-backend-epc",
                                                            "memory-backend-file",
                                                            "memory-backend-memfd",
                                                            "memory-backend-ram",
                                                            "memory-backend-shm",
                                                            "pef-guest",
                                                            "pr-manager-helper",
                                                            "qtest",
                                                            "rng-builtin",
                                                            "rng-egd",
                                                            "rng-random",
                                                            "secret",
                                                            "secret_keyring",
                                                            "sev-guest",
                                                            "sev-snp-guest",
                                                            "thread-context",
                                                            "s390-pv-guest",
                                                            "throttle-group",
                                                            "tls-creds-anon",
                                                            "tls-creds-psk",
                                                            "tls-creds-x509",
                                                            "tls-cipher-suites",
                                                            {"x-remote-object", Stability::unstable},
                                                            {"x-vfio-user-server", Stability::unstable}});

enum class AuthzListPolicy : std::uint8_t { deny, allow };
template <>
inline constexpr auto name_table<AuthzListPolicy> = names_up_to(AuthzListPolicy::allow, "QAuthZListPolicy",
                                                                {"deny", "allow"});

enum class AuthzListFormat : std::uint8_t { exact, glob };
template <>
inline constexpr auto name_table<AuthzListFormat> = names_up_to(AuthzListFormat::glob, "QAuthZListFormat",
                                                                {"exact", "glob"});

enum class SecretFormat : std::uint8_t { raw, base64 };
template <>
inline constexpr auto name_table<SecretFormat> = names_up_to(SecretFormat::base64, "QCryptoSecretFormat",
                                                             {"raw", "base64"});

enum class TlsEndpoint : std::uint8_t { client, server };
template <>
inline constexpr auto name_table<TlsEndpoint> = names_up_to(TlsEndpoint::server, "QCryptoTLSCredsEndpoint",
                                                            {"client", "server"});

struct AuthzListRule {
  std::string match;
  AuthzListPolicy policy = AuthzListPolicy::deny;
  std::optional<AuthzListFormat> format;
  static constexpr std::string_view type_name = "QAuthZListRule";
  static constexpr auto members() {
    return std::make_tuple(req("match", &AuthzListRule::match), req("policy", &AuthzListRule::policy),
                           opt("format", &AuthzListRule::format));
  }
};

struct AuthzList {
  std::optional<AuthzListPolicy> policy;
  std::optional<std::vector<AuthzListRule>> rules;
  static constexpr std::string_view type_name = "AuthZListProperties";
  static constexpr auto members() {
    return std::make_tuple(opt("policy", &AuthzList::policy), opt("rules", &AuthzList::rules));
  }
};

struct AuthzListFile {
  std::string filename;
  std::optional<bool> refresh;
  static constexpr std::string_view type_name = "AuthZListFileProperties";
  static constexpr auto members() {
    return std::make_tuple(req("filename", &AuthzListFile::filename), opt("refresh", &AuthzListFile::refresh));
  }
};

struct AuthzPam {
  std::string service;
  static constexpr std::string_view type_name = "AuthZPAMProperties";
  static constexpr auto members() { return std::make_tuple(req("service", &AuthzPam::service)); }
};

struct AuthzSimple {
  std::string identity;
  static constexpr std::string_view type_name = "AuthZSimpleProperties";
  static constexpr auto members() { return std::make_tuple(req("identity", &AuthzSimple::identity)); }
};

struct Secret {
  std::optional<SecretFormat> format;
  std::optional<std::string> keyid, iv, data, file;
  static constexpr std::string_view type_name = "SecretProperties";
  static constexpr auto members() {
    return std::make_tuple(opt("format", &Secret::format), opt("keyid", &Secret::keyid), opt("iv", &Secret::iv),
                           opt("data", &Secret::data), opt("file", &Secret::file));
  }
};

struct SecretKeyring {
  std::optional<SecretFormat> format;
  std::optional<std::string> keyid, iv;
  std::int32_t serial = 0;
  static constexpr std::string_view type_name = "SecretKeyringProperties";
  static constexpr auto members() {
    using S = SecretKeyring;
    return std::make_tuple(opt("format", &S::format), opt("keyid", &S::keyid), opt("iv", &S::iv),
                           req("serial", &S::serial));
  }
};

struct TlsCredsAnon {
  std::optional<bool> verify_peer;
  std::optional<std::string> dir;
  std::optional<TlsEndpoint> endpoint;  // default: client
  std::optional<std::string> priority;
  static constexpr std::string_view type_name = "TlsCredsAnonProperties";
  static constexpr auto members() {
    using S = TlsCredsAnon;
    return std::make_tuple(opt("verify-peer", &S::verify_peer), opt("dir", &S::dir), opt("endpoint", &S::endpoint),
                           opt("priority", &S::priority));
  }
};

struct TlsCredsPsk {
  std::optional<bool> verify_peer;
  std::optional<std::string> dir;
  std::optional<TlsEndpoint> endpoint;
  std::optional<std::string> priority;
  std::optional<std::string> username;
  static constexpr std::string_view type_name = "TlsCredsPskProperties";
  static constexpr auto members() {
    using S = TlsCredsPsk;
    return std::make_tuple(opt("verify-peer", &S::verify_peer), opt("dir", &S::dir), opt("endpoint", &S::endpoint),
                           opt("priority", &S::priority), opt("username", &S::username));
  }
};

struct TlsCredsX509 {
  std::optional<bool> verify_peer;
  std::optional<std::string> dir;
  std::optional<TlsEndpoint> endpoint;
  std::optional<std::string> priority;
  std::optional<bool> sanity_check;
  std::optional<std::string> passwordid;  // id of a secret
  static constexpr std::string_view type_name = "TlsCredsX509Properties";
  static constexpr auto members() {
    using S = TlsCredsX509;
    return std::make_tuple(opt("verify-peer", &S::verify_peer), opt("dir", &S::dir), opt("endpoint", &S::endpoint),
                           opt("priority", &S::priority), opt("sanity-check", &S::sanity_check),
                           opt("passwordid", &S::passwordid));
  }
};

struct TlsCipherSuites : TlsCredsAnon {
  static constexpr std::string_view type_name = "TlsCipherSuitesProperties";
};

struct ObjectAddArgs {
  ObjectType qom_type = ObjectType::tls_creds_x509;
  std::string id;
  std::variant<Unread, AuthzList, AuthzListFile, AuthzPam, AuthzSimple, Secret, SecretKeyring, TlsCredsAnon,
               TlsCredsPsk, TlsCredsX509, TlsCipherSuites>
      u;

  static constexpr std::string_view type_name = "ObjectOptions";
  static constexpr auto members() {
    return std::make_tuple(req("qom-type", &ObjectAddArgs::qom_type), req("id", &ObjectAddArgs::id));
  }
  static constexpr auto tag() { return &ObjectAddArgs::qom_type; }
  static constexpr auto branches() {
    using E = ObjectType;
    return std::make_tuple(branch<AuthzList>(E::authz_list), branch<AuthzListFile>(E::authz_listfile),
                           branch<AuthzPam>(E::authz_pam), branch<AuthzSimple>(E::authz_simple),
                           branch<Secret>(E::secret), branch<SecretKeyring>(E::secret_keyring),
                           branch<TlsCredsAnon>(E::tls_creds_anon), branch<TlsCredsPsk>(E::tls_creds_psk),
                           branch<TlsCredsX509>(E::tls_creds_x509), branch<TlsCipherSuites>(E::tls_cipher_suites));
  }
};

struct ObjectDelArgs {
  std::string id;
  static constexpr std::string_view type_name = "object-del-arg";
  static constexpr auto members() { return std::make_tuple(req("id", &ObjectDelArgs::id)); }
};

// Object ids: a letter, then letters, digits and "-._". Otherwise "Parameter 'id' expects an identifier".
QmpResult<> check_object_id(std::string_view id);

// object-add of a build without object support: id checked, then "invalid object type: ...", as QEMU says of a type
// it knows but was not built with.
QmpError refused_object(const ObjectAddArgs& args);

}  // namespace migrationd::qmp
