#include "control/roles.h"

#include <algorithm>
#include <array>
#include <iterator>

namespace pollux::control {

namespace {

constexpr unsigned bit(Role role) {
  return 1U << static_cast<unsigned>(role);
}
constexpr unsigned kAdmin = bit(Role::kAdmin);
constexpr unsigned kCinder = bit(Role::kCinder);
constexpr unsigned kCompute = bit(Role::kCompute);
constexpr unsigned kAll = kAdmin | kCinder | kCompute | bit(Role::kReader);

enum class Effect : std::uint8_t { kReads, kChanges };

struct Rule {
  std::string_view method;
  unsigned roles;
  Effect effect;
};

// thrift/pollux.thrift states the same in the comment of each call.
constexpr Rule kRules[] = {
    {"describe", kAll, Effect::kReads},
    {"stats", kAll, Effect::kReads},
    {"pool_create", kAdmin, Effect::kChanges},
    {"pool_import", kAdmin, Effect::kChanges},
    {"pool_export", kAdmin, Effect::kChanges},
    {"pool_list", kAll, Effect::kReads},
    {"pool_describe", kAll, Effect::kReads},
    {"pool_check", kAdmin, Effect::kChanges},
    {"pool_check_describe", kAdmin, Effect::kReads},
    {"pool_set_discard", kAdmin, Effect::kChanges},
    {"pool_trim", kAdmin, Effect::kChanges},
    {"volume_create", kAdmin | kCinder, Effect::kChanges},
    {"volume_delete", kAdmin | kCinder, Effect::kChanges},
    {"volume_extend", kAdmin | kCinder, Effect::kChanges},
    {"volume_describe", kAll, Effect::kReads},
    {"volume_list", kAll, Effect::kReads},
    {"snapshot_create", kAdmin | kCinder, Effect::kChanges},
    {"volume_clone", kAdmin | kCinder, Effect::kChanges},
    {"volume_revert", kAdmin | kCinder, Effect::kChanges},
    {"volume_flatten", kAdmin | kCinder, Effect::kChanges},
    {"volume_set_qos", kAdmin | kCinder, Effect::kChanges},
    {"volume_stats", kAll, Effect::kReads},
    {"authorise", kAdmin | kCinder, Effect::kChanges},
    {"unauthorise", kAdmin | kCinder, Effect::kChanges},
    {"authorisation_list", kAll, Effect::kReads},
    {"attach", kAdmin | kCompute, Effect::kChanges},
    {"detach", kAdmin | kCinder | kCompute, Effect::kChanges},
    {"attachment_list", kAll, Effect::kReads},
    {"controller_ensure", kAdmin | kCompute, Effect::kChanges},
    {"controller_delete", kAdmin | kCompute, Effect::kChanges},
    {"data_open", kAdmin | kCinder, Effect::kChanges},
    {"data_close", kAdmin | kCinder, Effect::kChanges},
    {"job_list", kAll, Effect::kReads},
    {"job_cancel", kAdmin | kCinder, Effect::kChanges},
};

constexpr Role kRoles[] = {Role::kAdmin, Role::kCinder, Role::kCompute, Role::kReader};

const Rule* find(std::string_view method) {
  const auto* rule =
      std::find_if(std::begin(kRules), std::end(kRules), [&](const Rule& r) { return r.method == method; });
  return rule == std::end(kRules) ? nullptr : rule;
}

}  // namespace

Role role_of(std::string_view organisational_unit) {
  for (const Role role : kRoles) {
    if (organisational_unit == to_string(role)) return role;
  }
  return Role::kNone;
}

const char* to_string(Role role) {
  switch (role) {
    case Role::kNone:
      return "none";
    case Role::kAdmin:
      return "admin";
    case Role::kCinder:
      return "cinder";
    case Role::kCompute:
      return "compute";
    case Role::kReader:
      return "reader";
  }
  return "unknown";
}

bool may_call(Role role, std::string_view method) {
  const Rule* rule = find(method);
  return rule != nullptr && role != Role::kNone && (rule->roles & bit(role)) != 0;
}

bool changes_state(std::string_view method) {
  const Rule* rule = find(method);
  return rule == nullptr || rule->effect == Effect::kChanges;
}

bool known_method(std::string_view method) {
  return find(method) != nullptr;
}

std::vector<std::string_view> known_methods() {
  std::vector<std::string_view> methods;
  for (const auto& rule : kRules) methods.push_back(rule.method);
  return methods;
}

std::string roles_that_may_call(std::string_view method) {
  std::string list;
  for (const Role role : kRoles) {
    if (may_call(role, method)) list += (list.empty() ? "" : ", ") + std::string(to_string(role));
  }
  return list;
}

}  // namespace pollux::control
