#pragma once
// Who may call what. The role is the organisational unit (OU) of the client's certificate, its host the common name
// (CN). The table in roles.cpp is the only place that says which role may use which call of the contract.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pollux::control {

enum class Role : std::uint8_t { kNone, kAdmin, kCinder, kCompute, kReader };

// "admin", "cinder", "compute", "reader"; anything else is kNone.
Role role_of(std::string_view organisational_unit);
const char* to_string(Role role);

// The other end of a connection.
struct Caller {
  Role role = Role::kNone;
  std::string host;  // CN
  std::string peer;  // address and port
};

// False also for a call that the contract does not have.
bool may_call(Role role, std::string_view method);
// False: reading, which the log mentions at level debug alone.
bool changes_state(std::string_view method);
bool known_method(std::string_view method);
std::vector<std::string_view> known_methods();
// "admin, cinder": for the message of a refusal.
std::string roles_that_may_call(std::string_view method);

}  // namespace pollux::control
