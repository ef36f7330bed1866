#pragma once
// For tests: a certificate authority that lives in a temporary folder and signs whatever a test asks for, the wrong
// things included.

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "control/tls_context.h"

namespace pollux::control::test {

struct Holder {
  std::string common_name;
  std::vector<std::string> units;
  long valid_from_s = -3600;
  long valid_until_s = 3600;
};

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "pollux-test-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class Authority {
 public:
  // Files are made in the folder, with names that begin with `prefix`.
  Authority(const Folder& folder, std::string prefix) : base_(folder.path() + "/" + prefix), key_(make_key()) {
    certificate_ = make(Holder{prefix + " authority", {}}, key_.get(), nullptr);
    write_certificate(base_ + "-ca.pem", certificate_.get());
  }

  std::string ca() const { return base_ + "-ca.pem"; }

  // Certificate and key files, with this authority as the one to trust.
  TlsFiles issue(const std::string& stem, const Holder& holder) const {
    const auto key = make_key();
    const auto certificate = make(holder, key.get(), certificate_.get());
    const TlsFiles files{ca(), base_ + "-" + stem + ".pem", base_ + "-" + stem + "-key.pem"};
    write_certificate(files.certificate, certificate.get());
    const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(files.key.c_str(), "w"), std::fclose);
    if (!file || PEM_write_PrivateKey(file.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr) != 1) {
      throw std::runtime_error("cannot write " + files.key);
    }
    std::filesystem::permissions(files.key, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
    return files;
  }

 private:
  using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
  using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;

  static Key make_key() { return {EVP_EC_gen("P-256"), EVP_PKEY_free}; }

  static void add(X509_NAME* name, const char* field, const std::string& value) {
    X509_NAME_add_entry_by_txt(name, field, MBSTRING_UTF8, reinterpret_cast<const unsigned char*>(value.data()),
                               static_cast<int>(value.size()), -1, 0);
  }

  Certificate make(const Holder& holder, EVP_PKEY* key, X509* issuer) const {
    static std::atomic<long> serial{1};
    Certificate certificate(X509_new(), X509_free);
    X509* x = certificate.get();
    X509_set_version(x, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(x), serial++);
    X509_gmtime_adj(X509_getm_notBefore(x), holder.valid_from_s);
    X509_gmtime_adj(X509_getm_notAfter(x), holder.valid_until_s);
    X509_set_pubkey(x, key);
    X509_NAME* name = X509_get_subject_name(x);
    if (!holder.common_name.empty()) add(name, "CN", holder.common_name);
    for (const auto& unit : holder.units) add(name, "OU", unit);
    X509_set_issuer_name(x, X509_get_subject_name(issuer == nullptr ? x : issuer));
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer == nullptr ? x : issuer, x, nullptr, nullptr, 0);
    const char* constraint = issuer == nullptr ? "critical,CA:TRUE" : "critical,CA:FALSE";
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, NID_basic_constraints, constraint);
    X509_add_ext(x, extension, -1);
    X509_EXTENSION_free(extension);
    if (X509_sign(x, key_.get(), EVP_sha256()) == 0) throw std::runtime_error("cannot sign");
    return certificate;
  }

  static void write_certificate(const std::string& path, X509* certificate) {
    const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "w"), std::fclose);
    if (!file || PEM_write_X509(file.get(), certificate) != 1) throw std::runtime_error("cannot write " + path);
  }

  const std::string base_;
  const Key key_;
  Certificate certificate_{nullptr, X509_free};
};

}  // namespace pollux::control::test
